#' Save a model
#'
#' @description
#' This is [keras3::save_model()], which it takes the place of, with one difference: a Flax module that cannot be saved ends in
#' an error before the file is opened, so that the file that was there stays what it was.
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
    with_r_conditions(the$core$`_models`$check_savable(model))
  }
  keras3::save_model(model, filepath, overwrite = overwrite, zipped = zipped, ...)
}
