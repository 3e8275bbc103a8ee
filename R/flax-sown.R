#' Get the values that a module sowed in the last call
#'
#' @description
#' A Flax module records values with `self$sow(collection, name, value)`. The layer does not keep
#' these values as variables. `flax_sown()` returns the values from the last eager call, such as
#' `layer(x)` on an array. `fit()`, `evaluate()` and `predict()` compile their calls, which leave no
#' values behind. The sum of the values in the collection `losses` is always added to the model's
#' losses.
#'
#' @param object A layer created by [layer_flax_module_wrapper()].
#'
#' @returns A named list by collection, nested like the modules. Each innermost element is a list of
#'   the values sown under one name, as R arrays; a name with its own reduction has one value. The
#'   list is empty if nothing was sown.
#'
#' @seealso [flax_variables()] for weights and state, `vignette("inspect-and-save")`
#' @examplesIf kerasflax:::runs_examples()
#' nn <- reticulate::import("flax.linen")
#' Sower(nn$Module) %py_class% {
#'   `__call__` <- nn$compact(\(self, inputs) {
#'     self$sow("intermediates", "hidden", inputs * 2)
#'     (nn$Dense(1L))(inputs)
#'   })
#' }
#' layer <- layer_flax_module_wrapper(module = Sower())
#' output <- layer(matrix(1, 2, 3))
#' flax_sown(layer)$intermediates$hidden
#' @export
flax_sown <- function(object) {
  check_flax_layer(object)
  lapply(object$sown, sown_tree)
}

sown_tree <- function(tree) {
  if (!is.list(tree)) {
    list(as_r_array(tree))
  } else if (is.null(names(tree))) {
    lapply(tree, as_r_array)
  } else {
    lapply(tree, sown_tree)
  }
}
