#' Use Flax modules as Keras layers
#'
#' [layer_flax_module_wrapper()] turns a Flax module into a Keras layer, which you can pipe,
#' compile, fit, inspect and combine like any other layer. The module can come from a Python
#' package, consist of parts of `flax$linen`, or be defined in R with [flax_module()] or
#' `%py_class%`.
#'
#' # Python
#' Loading the package declares the Python packages that it needs (Flax, JAX and Keras) with
#' [reticulate::py_require()], and does not start Python. If you have not chosen a backend for
#' keras3, kerasflax chooses JAX, which Flax modules require.
#'
#' @seealso [layer_flax_module_wrapper()], [flax_module()], `vignette("kerasflax")`
#' @examplesIf kerasflax:::runs_examples()
#' nn <- reticulate::import("flax.linen")
#' mlp <- flax_module("MLP",
#'   units = 16L,
#'   call = function(self, inputs) {
#'     x <- nn$relu((nn$Dense(self$units))(inputs))
#'     (nn$Dense(1))(x)
#'   }
#' )
#' model <- keras_model_sequential(4) |>
#'   layer_flax_module_wrapper(mlp(), name = "mlp")
#' model |> compile(optimizer = "adam", loss = "mse")
#'
#' x <- scale(as.matrix(mtcars[c("wt", "hp", "disp", "qsec")]))
#' history <- model |> fit(x, mtcars$mpg, epochs = 2, verbose = 0)
#' flax_parameters(model)
#'
#' @keywords internal
#' @importFrom keras3 use_backend config_backend shape
#' @importFrom rlang caller_env
"_PACKAGE"

# The package's only environment with mutable state.
the <- new.env(parent = emptyenv())

# The Python core: a module that reticulate imports at its first use.
the$core <- NULL

# Definitions of modules whose Python classes do not exist yet.
the$definitions <- list()

# The progress bar of the layer that is being built.
the$bar <- NULL

# The backend that was chosen when the package was loaded, and by whom.
the$backend <- NULL
