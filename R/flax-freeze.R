#' Freeze weights by path
#'
#' @description
#' `flax_freeze()` excludes weights of a Flax layer or model from training: they get no gradient,
#' and the optimizer stores nothing for them. `flax_unfreeze()` includes them again. Unlike
#' `trainable = FALSE`, freezing leaves the module in training mode.
#'
#' # Path patterns
#' In a layer, a weight has a path such as `params/Dense_0/kernel`. In a model, the path starts with
#' the layer's name: `mlp/params/Dense_0/kernel`. The column `path` of [flax_parameters()] has these
#' paths, and each of them is a pattern that selects its weight alone. In a pattern, `*` matches any
#' part of one name, `?` matches one character, and `**` in place of a name matches any number of
#' names: `"params/encoder/**"` in a layer, `"**/bias"` in both. A pattern that matches no trainable
#' weight is a `kerasflax_error_argument`; its message shows the closest paths.
#'
#' # Compiled models
#' You can freeze weights before or after `compile()`. An optimizer that has already trained the
#' model keeps its state, and a warning tells you to `compile()` the model again. Otherwise, the
#' next `fit()` fails in Keras, and the model's weights are lost. A layer knows only about training
#' in the current session, so pass the model, not the layer, if you loaded the model from a file.
#'
#' @param object A layer created by [layer_flax_module_wrapper()] that has been built, or a model
#'   that contains such layers.
#' @param path A character vector of path patterns. `NULL` stands for every trainable weight of the
#'   Flax layers.
#'
#' @returns `object`, invisibly. Its weights are changed in place.
#'
#' @seealso [flax_parameters()] for the paths of the weights, `vignette("transfer-learning")`
#' @examplesIf kerasflax:::runs_examples()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "dense")
#'
#' # Train the bias alone
#' flax_parameters(model)$path
#' model |> flax_freeze("dense/params/kernel")
#' flax_parameters(model)
#'
#' model |> compile(optimizer = "sgd", loss = "mse")
#' before <- flax_variables(model)$dense$params
#' model |> fit(matrix(1, 8, 3), matrix(1, 8, 2), epochs = 1, verbose = 0)
#' after <- flax_variables(model)$dense$params
#' identical(after$kernel, before$kernel)
#' after$bias - before$bias
#' @export
flax_freeze <- function(object, path = NULL) set_frozen(object, path, TRUE)

#' @rdname flax_freeze
#' @export
flax_unfreeze <- function(object, path = NULL) set_frozen(object, path, FALSE)

set_frozen <- function(object, path, value, call = caller_env()) {
  check_flax_object(object, call = call)
  check_path_patterns(path, call = call)
  result <- call_core("set_frozen", object, as_patterns(path), value, .call = call)
  if (!is.null(result[[2]])) {
    rlang::warn(result[[2]])
  }
  invisible(object)
}
