#' The variables of a Flax layer or model
#'
#' @description
#' `flax_variables()` returns the variables of a layer, or of each Flax layer of a model, with the names that Flax gives them.
#' Assigning to it sets what is named, and leaves the rest.
#'
#' # Values in R
#' With `as = "r"` every value is exact: floating-point numbers of any precision and `uint32` become doubles, other integers
#' become integers (doubles where the least one, which is R's `NA`, is among them), and truth values logicals. A scalar has no
#' dimensions, a vector of length one has one. Random keys become their data, boxes of metadata are opened.
#'
#' With `as = "jax"` JAX arrays are returned, in the structure that `module$apply()` takes. They are copies on the devices of
#' the weights, and training does not change them.
#'
#' # Assigning
#' `value` may be a whole tree, a collection or a subtree of it. Values become what the variables are: whole doubles do where
#' integers belong. If anything does not fit, every such place is listed by path in a `kerasflax_error_variables`, and nothing
#' is set.
#'
#' @param object A layer made by [layer_flax_module_wrapper()] that has been built, or a model that holds some.
#' @param as `"r"` for R arrays, `"jax"` for JAX arrays.
#' @param value A nested named list of arrays: for a layer by collection, for a model by the layer's name and collection.
#'
#' @returns `flax_variables()`: a nested named list, of a layer by collection (`params`, `batch_stats`, ...) and path, of a
#'   model by layer, collection and path. The assignment: `object`, whose variables are changed in place.
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "dense")
#'
#' variables <- flax_variables(model)
#' variables$dense$params$kernel
#'
#' flax_variables(model) <- list(dense = list(params = list(bias = c(1, -1))))
#' @export
flax_variables <- function(object, as = c("r", "jax")) {
  as <- rlang::arg_match(as)
  check_flax_object(object)
  call_core(if (as == "r") "numpy_variables" else "variables", object)
}

#' @rdname flax_variables
#' @export
`flax_variables<-` <- function(object, value) {
  check_flax_object(object)
  check_variables(value, arg = "value", fit = function(part) {
    call_core("fitted_variables", object, as_variables(part))
  })
  call_core("set_variables", object, as_variables(value))
  invisible(object)
}
