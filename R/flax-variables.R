#' Get or set the variables of a Flax layer or model
#'
#' @description
#' `flax_variables()` returns the variables of a layer, or of each Flax layer of a model, under
#' their Flax names. The assignment form sets the variables that `value` names, and leaves the
#' others unchanged.
#'
#' # Values in R
#' With `as = "r"`, every value is exact. Floating-point numbers of any precision and `uint32`
#' become doubles. Other integers become integers, or doubles if they include the smallest integer,
#' which R uses for `NA`. Booleans become logicals. A scalar has no dimensions, and a vector of
#' length one has one dimension. Random keys become their data. Boxes of metadata are removed.
#'
#' With `as = "jax"`, values are JAX arrays, in the structure that `module$apply()` takes. They are
#' copies on the devices of the weights, and training does not change them.
#'
#' # Assignment
#' `value` can be a whole tree, a collection, or a subtree. Values are converted to the dtypes of
#' the variables; whole doubles are accepted for integers. If anything does not match, a
#' `kerasflax_error_variables` lists every mismatch by path, and nothing is set.
#'
#' @param object A layer created by [layer_flax_module_wrapper()] that has been built, or a model
#'   that contains such layers.
#' @param as `"r"` for R arrays, or `"jax"` for JAX arrays.
#' @param value A nested named list of arrays: by collection for a layer, or by layer name and
#'   collection for a model.
#'
#' @returns `flax_variables()` returns a nested named list. For a layer, its levels are the
#'   collection (`params`, `batch_stats`, ...) and the path; for a model, the layer, the collection
#'   and the path. The assignment returns `object`, whose variables are changed in place.
#'
#' @seealso [flax_parameters()] for a table of the weights, [flax_write()] to write them to a file
#' @examplesIf kerasflax:::runs_examples()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "dense")
#'
#' variables <- flax_variables(model)
#' variables$dense$params$kernel
#'
#' flax_variables(model) <- list(dense = list(params = list(bias = c(1, -1))))
#' predict(model, matrix(0, 1, 3), verbose = 0)
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
  check_variables(
    value,
    arg = "value",
    expected = "a named list of variables",
    advice = "Pass what {.code flax_variables(object)} returns, or a part of it.",
    fit = function(part) call_core("fitted_variables", object, as_variables(part))
  )
  call_core("set_variables", object, as_variables(value))
  invisible(object)
}
