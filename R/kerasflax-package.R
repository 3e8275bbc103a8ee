#' Flax modules as Keras layers
#'
#' [layer_flax_module_wrapper()] makes a Keras layer out of a Flax module, so that it can be piped, compiled, fitted,
#' inspected and combined like any other. The module may come from a Python package, be put together from the parts in
#' `flax$linen`, or be defined in R with `%py_class%`.
#'
#' # Python
#' Loading the package declares what it needs of Python with [reticulate::py_require()] (Flax, JAX and Keras) and starts
#' nothing. Where keras3's backend has been left open, it chooses JAX, the one on which Flax modules run.
#'
#' @keywords internal
#' @importFrom keras3 use_backend config_backend shape
#' @importFrom rlang caller_env
"_PACKAGE"

# The package's one environment of mutable state.
the <- new.env(parent = emptyenv())

# The Python core, a module that is imported when it is first used.
the$core <- NULL
