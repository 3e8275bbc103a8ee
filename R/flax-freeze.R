#' Exclude weights from training by their paths
#'
#' @description
#' `flax_freeze()` freezes weights of a Flax layer or model: they get no gradient, and the optimizer keeps nothing for them.
#' `flax_unfreeze()` includes them in training again. Unlike `trainable = FALSE` this leaves the module in training mode.
#'
#' # Paths
#' A weight of a layer has a path like `params/Dense_0/kernel`; for a model the layer's name stands before it,
#' `flax_layer/params/Dense_0/kernel`. [flax_variables()] shows them. In a pattern `*` stands for any part of one name, `?` for
#' one character, and `**`, as a name, for any number of names: `"params/encoder/**"`, `"**/bias"`. A pattern that no trainable
#' weight fits is a `kerasflax_error_argument`, which shows the nearest paths.
#'
#' # When
#' Weights can be frozen before and after `compile()`. An optimizer that has trained the model keeps what it keeps: `compile()`
#' the model again then; a warning says so. Without it the next `fit()` ends in an error of Keras's, which then has lost the
#' model's weights. A layer by itself knows of its training in this session alone: of a model that was loaded, give the model.
#'
#' @param object A layer made by [layer_flax_module_wrapper()] that has been built, or a model that holds some.
#' @param path Patterns of paths, a character vector. `NULL`: every trainable weight of the Flax layers.
#'
#' @returns `object`, invisibly, whose weights are changed in place.
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "dense")
#'
#' model |> flax_freeze("**/kernel")
#' summary(model)
#' model |> flax_unfreeze()
#' @export
flax_freeze <- function(object, path = NULL) set_frozen(object, path, TRUE)

#' @rdname flax_freeze
#' @export
flax_unfreeze <- function(object, path = NULL) set_frozen(object, path, FALSE)

set_frozen <- function(object, path, value, call = caller_env()) {
  check_flax_object(object, call = call)
  check_path_patterns(path, call = call)
  patterns <- if (!is.null(path)) as.list(unname(path))
  result <- call_core("set_frozen", object, patterns, value, .call = call)
  if (!is.null(result[[2]])) {
    rlang::warn(result[[2]])
  }
  invisible(object)
}
