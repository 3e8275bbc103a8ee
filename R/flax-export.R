#' Export a model to StableHLO, or run an exported model
#'
#' @description
#' `flax_export()` writes a model's inference function, including its weights, to one file:
#' StableHLO in the format of `jax.export`. Python needs only JAX to run the file
#' (`jax.export.deserialize(data).call(inputs)`): neither Keras, Flax, R nor the module's code.
#' `flax_import()` reads such a file and returns a function that runs it.
#'
#' Input sizes that the model leaves open stay open: the batch size and the length of sequences.
#' Both functions require the Python package flatbuffers.
#'
#' # Untrusted files
#' A StableHLO file is a program. `flax_import()` compiles and runs it, as JAX does, so import files
#' only from sources whose code you would run. A checksum at the end of the file detects damage; it
#' does not prove who wrote the file.
#'
#' @param model A model with known inputs: one created by [keras3::keras_model()], or a sequential
#'   model that has been built.
#' @param path The name of the file.
#' @param checked Whether to refuse a file without a checksum, for example one from another program.
#'   JAX does not detect damage in such a file, and the damage can crash R or change results.
#' @param platforms The platforms to export for, under JAX's names.
#'
#' @returns `flax_export()` returns `model`, invisibly. `flax_import()` returns a function that
#'   takes an array or a (nested, named) list of arrays, as the model does, and returns R arrays.
#'
#' @seealso [save_model()] for models that can be trained further, [flax_write()] for weights alone
#' @examplesIf kerasflax:::runs_examples() && reticulate::py_module_available("flatbuffers")
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L))
#'
#' file <- tempfile(fileext = ".stablehlo")
#' flax_export(model, file)
#'
#' run <- flax_import(file)
#' inputs <- matrix(seq(-1, 1, length.out = 15), 5, 3)
#' run(inputs)
#' all.equal(run(inputs), predict(model, inputs, verbose = 0), tolerance = 1e-6)
#' @export
flax_export <- function(model, path, platforms = c("cpu", "cuda", "tpu")) {
  check_file_path(path)
  if (!is.character(platforms) || length(platforms) == 0 || anyNA(platforms)) {
    abort_kerasflax(
      c(
        "{.arg platforms} must be a character vector of platform names.",
        x = "It is {describe(platforms)}.",
        i = "Pass, for example, {.code platforms = \"cpu\"}."
      ),
      cause = "argument"
    )
  }
  check_encoding(platforms, "platforms")
  if (!is_keras_layer(model)) {
    abort_kerasflax(
      c("{.arg model} must be a Keras model.", x = "It is {describe(model)}."),
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
  check_flag(checked)
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
        "{.arg inputs} must be an array or a list of arrays that match the model's inputs.",
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
