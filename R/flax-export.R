#' Export a model as StableHLO, and run such a file
#'
#' @description
#' `flax_export()` writes what a model computes at inference, its weights included, to one file: StableHLO, as `jax.export`
#' serializes it. It is run by Python with JAX alone (`jax.export.deserialize(data).call(inputs)`), without Keras, Flax, R, or
#' the code of a module. `flax_import()` reads such a file, and returns a function that runs it.
#'
#' Sizes of the input that the model leaves open stay open: the batch's, and the length of sequences.
#'
#' Both need the Python package flatbuffers.
#'
#' # Files of others
#' A file of StableHLO is a program: `flax_import()` compiles and runs what it finds, as JAX does. Take such files only from
#' those whose code you would run. A checksum at the file's end finds damage; it does not tell who wrote the file.
#'
#' @param model A model that knows its inputs: one made by [keras3::keras_model()], or a sequential one that has been built.
#' @param path The file's name.
#' @param checked Whether to refuse a file without a checksum, such as one that another program has written. In such a file JAX
#'   does not find damage, which can end R or change results.
#' @param platforms Where it shall run, as JAX names it.
#'
#' @returns `flax_export()`: `model`, invisibly. `flax_import()`: a function of an array, or of a (nested, named) list of arrays
#'   as the model takes it, that returns R arrays.
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L))
#'
#' flax_export(model, "model.stablehlo")
#' run <- flax_import("model.stablehlo")
#' run(matrix(1, 5, 3))
#' @export
flax_export <- function(model, path, platforms = c("cpu", "cuda", "tpu")) {
  check_file_path(path)
  if (!is.character(platforms) || length(platforms) == 0 || anyNA(platforms)) {
    abort_kerasflax(
      c("{.arg platforms} must be names of platforms.", x = "It is {what_is(platforms)}."),
      cause = "argument"
    )
  }
  if (!is_keras_layer(model)) {
    abort_kerasflax(
      c("{.arg model} must be a Keras model.", x = "It is {what_is(model)}."),
      cause = "object"
    )
  }
  call_core("export_model", model, path, platforms = as.list(platforms))
  invisible(model)
}

#' @rdname flax_export
#' @export
flax_import <- function(path, checked = TRUE) {
  check_file_path(path)
  check_layer_argument(
    list(checked = checked),
    "checked",
    rlang::is_bool,
    "TRUE or FALSE",
    rlang::current_env()
  )
  run <- call_core("import_model", path, checked = checked, .convert = FALSE)
  function(inputs) {
    check_inputs(inputs)
    as_r_arrays(with_r_conditions(run(inputs)))
  }
}

check_inputs <- function(inputs, call = caller_env()) {
  problem <- if (missing(inputs) || is.null(inputs)) "It is NULL" else object_problem(inputs)
  if (!is.null(problem)) {
    abort_kerasflax(
      c(
        "{.arg inputs} must be an array, or a list of arrays, as the model takes them.",
        x = "{problem}."
      ),
      cause = "object",
      call = call
    )
  }
}

as_r_arrays <- function(x) {
  x <- if (is_python_container(x)) reticulate::py_to_r(x) else x
  if (is.list(x)) lapply(x, as_r_arrays) else as_r_array(x)
}
