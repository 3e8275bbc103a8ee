#' Save a model
#'
#' @description
#' This function masks [keras3::save_model()], and differs in two ways. If a Flax module cannot be
#' saved, you get an error before anything is written. The file is written under a temporary name
#' and renamed when it is complete, so an existing file stays unchanged until then, even if R is
#' interrupted or killed.
#'
#' Load a saved model with [keras3::load_model()] in any session that has loaded kerasflax. Weights,
#' state, random numbers and frozen weights are restored, so training continues as if uninterrupted.
#'
#' # Contents of the file
#' For each Flax module, the file contains its class and its fields, as readable JSON, and its
#' weights by path. The file contains no code and nothing that could be run. Fields can hold
#' numbers, strings, `NULL`, arrays, dtypes, lists, tuples, dicts, modules, module classes,
#' functions of `jax$nn`, `jax$numpy`, `jax$lax` and `flax$linen`, initializers, named Python
#' functions, configs of `ml_collections`, `transformers` and `diffusers`, and dataclasses and enums
#' that the declared type of a field names or that are in the package of a module's class. A Python
#' lambda or closure cannot be saved.
#'
#' # Requirements for loading
#' Loading requires the class of each module. A module that consists of parts of `flax$linen` needs
#' nothing else. If the class comes from a Python package, import the package first. If the class is
#' defined in R, with [flax_module()] or `%py_class%`, run the code that defines it before
#' `load_model()`: a class with the same name is found without registration. The same applies to an
#' R function that was passed as `method` under its name. A Python function is found in `__main__`,
#' where `reticulate::py_run_string()` defines it, or in an imported Python module that also defines
#' a module class of the model. You can also pass classes and functions in
#' `load_model(custom_objects = )`. If something is not found, a Python error names it, because
#' `load_model()` belongs to keras3.
#'
#' Loading a file never runs code from it and never imports a package. A dataclass of another
#' package that no module declares as the type of a field is not loaded from a file, unless
#' `custom_objects` contains it.
#'
#' # Clones
#' [keras3::clone_model()] needs no file, so it also clones layers that cannot be saved. A clone has
#' new initial values. If it is unknown which arguments created an NNX module, the clone starts with
#' the layer's current values instead.
#'
#' @param model,filepath,overwrite,zipped,... See [keras3::save_model()].
#'
#' @returns Like [keras3::save_model()]: `model`, invisibly, or a raw vector if `filepath` is
#'   missing.
#'
#' @seealso [keras3::load_model()], [flax_write()] for weights alone, [flax_export()] for a program,
#'   `vignette("inspect-and-save")`
#' @examplesIf kerasflax:::runs_examples()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L))
#'
#' file <- tempfile(fileext = ".keras")
#' save_model(model, file)
#'
#' loaded <- load_model(file)
#' x <- matrix(1, 1, 3)
#' identical(predict(loaded, x, verbose = 0), predict(model, x, verbose = 0))
#' @export
save_model <- function(model, filepath = NULL, overwrite = FALSE, zipped = NULL, ...) {
  if (is.character(filepath)) {
    check_encoding(filepath, "filepath")
  }
  if (is.character(model) && is_keras_layer(filepath)) {
    abort_kerasflax(
      c(
        "{.arg model} must be a Keras model.",
        x = "It is {describe(model)}, and {.arg filepath} is {describe(filepath)}.",
        i = "Swap the two arguments."
      ),
      cause = "object"
    )
  }
  if (is_keras_layer(model)) {
    call_core("check_savable", model)
  }
  if (is.null(filepath) || !is_keras_layer(model)) {
    return(keras3::save_model(model, filepath, overwrite = overwrite, zipped = zipped, ...))
  }
  check_file_path(filepath, arg = "filepath")
  check_overwrite(filepath, overwrite)
  call_core("save_model", model, filepath, zipped = zipped)
  invisible(model)
}

# Asks or stops, as keras3 does.
check_overwrite <- function(filepath, overwrite, call = caller_env()) {
  if (isTRUE(overwrite) || !file.exists(filepath)) {
    return()
  }
  if (rlang::is_interactive()) {
    overwrite <- utils::askYesNo(
      sprintf("File '%s' already exists - overwrite?", filepath),
      default = FALSE
    )
  }
  if (!isTRUE(overwrite)) {
    abort_kerasflax(
      c(
        "The file {.val {filepath}} already exists.",
        i = "Pass {.code overwrite = TRUE} to replace it."
      ),
      cause = "file",
      call = call
    )
  }
}
