#' What a module sowed in the last call
#'
#' @description
#' A Flax module records values with `self$sow(collection, name, value)`. The layer does not keep them among its variables;
#' `flax_sown()` returns those of the last eager call, such as `layer(x)` on an array. Calls inside `fit()`, `evaluate()` and
#' `predict()` are compiled and leave no values behind. Scalars sown into the collection `losses` are added to the model's
#' losses in any case.
#'
#' @param object A layer made by [layer_flax_module_wrapper()].
#'
#' @returns A named list by collection, nested as the modules are. At its ends are lists of the values that were sown under one
#'   name, as R arrays; a name with a reduction of its own has one value. An empty list when nothing was sown.
#'
#' @examplesIf interactive()
#' nn <- reticulate::import("flax.linen")
#' Sower(nn$Module) %py_class% {
#'   `__call__` <- nn$compact(\(self, inputs) {
#'     self$sow("intermediates", "hidden", inputs * 2)
#'     (nn$Dense(1L))(inputs)
#'   })
#' }
#' layer <- layer_flax_module_wrapper(module = Sower())
#' layer(matrix(1, 2, 3))
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
