#' Save a model
#'
#' @description
#' This function masks [keras3::save_model()]. Two things differ: a Flax module that cannot be saved is an error before anything
#' is written, and the file is written under a temporary name and takes its place when it is whole. Until then the file that was
#' there stays what it was, even if R is interrupted or killed.
#'
#' A saved model is loaded by [keras3::load_model()], in any session that has loaded kerasflax, with the same weights, state,
#' random numbers and frozen weights: the next training step is the one that would have come.
#'
#' # What is in the file
#' Of each Flax module its class and its fields, in JSON that a person can read, and its weights by path. There is no code in it
#' and nothing that could be run. A module's fields may hold numbers, strings, `NULL`, arrays, dtypes, lists, tuples and dicts,
#' modules, classes of modules, functions of `jax$nn`, `jax$numpy`, `jax$lax` and `flax$linen`, initializers, and the
#' dataclasses and enums that the declared type of a field names.
#'
#' # What has to be there to load it
#' The class of the module. A module made of parts of `flax$linen` needs nothing. Of a Python package, import it first. Where
#' the class has been defined in R, with [flax_module()] or `%py_class%`, run the code that defines it, and then `load_model()`:
#' a class of the same name is found with nothing to register. So is an R function that was given as `method` by its name.
#' Otherwise `load_model(custom_objects = )` takes both. What is not found is named by an error, one of Python's, as
#' `load_model()` is keras3's.
#'
#' A file never runs code or imports a package. A dataclass that no module declares as the type of a field is not taken from a
#' file, unless `custom_objects` has it.
#'
#' @param model,filepath,overwrite,zipped,... See [keras3::save_model()].
#'
#' @returns As [keras3::save_model()]: `model`, invisibly, or without a `filepath` a raw vector.
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L))
#'
#' save_model(model, "model.keras")
#' load_model("model.keras")
#' @export
save_model <- function(model, filepath = NULL, overwrite = FALSE, zipped = NULL, ...) {
  if (is_keras_layer(model)) {
    call_core("check_savable", model)
  }
  if (is.null(filepath) || !is_keras_layer(model)) {
    return(keras3::save_model(model, filepath, overwrite = overwrite, zipped = zipped, ...))
  }
  check_file_path(filepath)
  check_overwrite(filepath, overwrite)
  call_core("save_model", model, filepath, zipped = zipped)
  invisible(model)
}

# As keras3 asks, or stops.
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
        "File {.val {filepath}} already exists.",
        i = "Pass {.code overwrite = TRUE} to replace it."
      ),
      cause = "file",
      call = call
    )
  }
}
