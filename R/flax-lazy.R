#' Let the layer create a Flax NNX module
#'
#' @description
#' An NNX module creates its weights in its constructor. `flax_lazy()` describes how to create a
#' module, and the layer creates it when the layer is built, with the layer's `seed`. Nothing is
#' allocated earlier, memory never holds a second copy of the weights, and a saved model describes
#' its module compactly.
#'
#' # Saving
#' [save_model()] saves a class with its arguments, an R function by its name in the global
#' environment, and a Python function by the name of its Python module and its own. For any other
#' function, it warns that `load_model()` needs the function in `custom_objects`, under the name of
#' the module's class.
#'
#' The description can stand at the top level of a package, and in an RDS file or a saved workspace:
#' see [flax_module()].
#'
#' @param factory A subclass of `flax$nnx$Module`, or an R or Python function that returns an
#'   instance. If it takes `rngs`, it gets `flax$nnx$Rngs`. A model can be saved only if the
#'   function takes `rngs`.
#' @param ... Other arguments for `factory`, by position or name. Whole numbers become integers if a
#'   class asks for integers, and vectors of several elements become tuples. `rngs = NULL` creates
#'   the module without random numbers.
#'
#' @returns A description of the module for [layer_flax_module_wrapper()], or for an argument of
#'   another `flax_lazy()`.
#'
#' @seealso [flax_module()] to define an NNX module in R, [layer_flax_module_wrapper()]
#' @examplesIf kerasflax:::runs_examples()
#' nnx <- reticulate::import("flax.nnx")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax_lazy(nnx$Linear, 3, 4), seed = 1)
#' flax_parameters(model)
#'
#' net <- function(rngs, units = 8L) {
#'   nnx$Sequential(
#'     nnx$Linear(3L, units, rngs = rngs), nnx$relu, nnx$Linear(units, 2L, rngs = rngs)
#'   )
#' }
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax_lazy(net, units = 16L), seed = 1)
#' predict(model, diag(3), verbose = 0)
#' @export
flax_lazy <- function(factory, ...) {
  # An R function keeps the name that the user gave it, and is found again by that name.
  name <- substitute(factory)
  check_backend()
  factory <- if (missing(factory)) NULL else factory
  if (!is.function(factory) || is_flax_module(factory) || is_keras_layer(factory)) {
    abort_kerasflax(
      c(
        "{.arg factory} must be an NNX module class, or a function that returns an NNX module.",
        x = "It is {describe(factory)}.",
        i = "Call, for example, {.code flax_lazy(nnx$Linear, 3, 4)}."
      ),
      cause = "argument"
    )
  }
  name <- if (is.symbol(name)) as.character(name) else "factory"
  arguments <- rlang::list2(...)
  for (text in Filter(is.character, arguments)) {
    check_encoding(text, "...", "Pass text in valid UTF-8.")
  }
  kept <- keep_value(factory)
  make_factory <- function() as_method(kept_value(kept, "factory"), name)
  new_lazy(make_factory, arguments, call = rlang::current_env())
}

# Describes a constructor call. `make_factory` returns the constructor in this session.
new_lazy <- function(make_factory, arguments, call) {
  kept <- lapply(arguments, keep_value)
  labels <- if (is.null(names(kept))) rep("...", length(kept)) else names(kept)
  make <- function(call) {
    values <- Map(\(value, label) as_field_value(kept_value(value, label, call)), kept, labels)
    call_core("LazyModule", make_factory(), !!!rlang::set_names(values, names(kept)), .call = call)
  }
  structure(list(python = new_remade(make, call)), class = "flax_lazy")
}

#' @export
print.flax_lazy <- function(x, ...) {
  cat("<flax_lazy> ", format_lazy(remade(x$python)), "\n", sep = "")
  invisible(x)
}

#' @exportS3Method reticulate::r_to_py flax_lazy
r_to_py.flax_lazy <- function(x, convert = FALSE) remade(x$python)

#' @export
print.kerasflax.LazyModule <- function(x, ...) {
  cat("<flax_lazy> ", format_lazy(x), "\n", sep = "")
  invisible(x)
}

format_lazy <- function(x) {
  factory <- reticulate::py_get_attr(x, "factory")
  name <- if (reticulate::py_has_attr(factory, "__name__")) {
    reticulate::py_to_r(reticulate::py_get_attr(factory, "__name__"))
  } else {
    "factory"
  }
  arguments <- c(as.list(x$arguments), x$keywords)
  values <- vapply(arguments, \(value) {
    if (inherits(value, "kerasflax.LazyModule")) format_lazy(value) else format_default(value)
  }, "")
  prefixes <- if (is.null(names(arguments))) "" else names(arguments)
  prefixes <- ifelse(nzchar(prefixes), paste(prefixes, "= "), "")
  paste0(name, "(", toString(paste0(prefixes, values)), ")")
}
