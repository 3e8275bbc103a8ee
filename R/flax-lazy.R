#' A Flax NNX module that its layer makes
#'
#' @description
#' An NNX module makes the values of its weights when it is made. `flax_lazy()` says how to make one, and leaves it to the
#' layer: when the layer is built, with the layer's `seed`. Nothing is allocated before, memory never
#' holds a second copy of the weights, and a saved model says in a few words what its module is.
#'
#' # Saving
#' A class and its arguments are saved, and so is an R function by the name that it has in the global environment. Of any other
#' function [save_model()] warns that `load_model()` takes it in `custom_objects`, by the name of the module's class.
#'
#' @param factory A class of `flax$nnx$Module`, or a function, of R or Python, that returns an instance. Where it takes
#'   `rngs`, it is given `flax$nnx$Rngs`; to be saved, a function has to take it.
#' @param ... Its other arguments, by position or name. Whole numbers become integers where a class asks for them, vectors of
#'   several become tuples. `rngs = NULL` makes the module without random numbers.
#'
#' @returns How to make the module, for [layer_flax_module_wrapper()] and as an argument of another `flax_lazy()`.
#'
#' @examplesIf interactive()
#' nnx <- reticulate::import("flax.nnx")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax_lazy(nnx$Linear, 3, 4), seed = 1)
#'
#' net <- function(rngs, units = 8L) {
#'   nnx$Sequential(nnx$Linear(3L, units, rngs = rngs), nnx$relu, nnx$Linear(units, 2L, rngs = rngs))
#' }
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax_lazy(net, units = 16L))
#' @export
flax_lazy <- function(factory, ...) {
  # An R function is called what its user calls it, and found again by that name.
  name <- substitute(factory)
  check_backend()
  factory <- if (missing(factory)) NULL else factory
  if (!is.function(factory) || is_flax_module(factory) || is_keras_layer(factory)) {
    abort_kerasflax(
      c(
        "{.arg factory} must be a class of NNX modules, or a function of {.arg rngs} that makes one.",
        x = "It is {what_is(factory)}.",
        i = "Give {.code flax_lazy(nnx$Linear, 3, 4)}, say."
      ),
      cause = "argument"
    )
  }
  if (!inherits(factory, "flax_module")) {
    factory <- as_method(factory, if (is.symbol(name)) as.character(name) else "factory")
  }
  call_core("LazyModule", factory, !!!lapply(rlang::list2(...), as_field_value))
}
