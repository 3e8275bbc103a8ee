#' Make a Keras layer of a Flax module
#'
#' @description
#' Wraps a module of [Flax](https://flax.readthedocs.io), from Python or defined in R, in a Keras layer. Like every
#' `layer_*()` function it composes with `object`, so that it can stand in a pipe. It takes the place of
#' [keras3::layer_flax_module_wrapper()].
#'
#' # The module's method
#' `__call__()`, or the `method` given, is called to initialise the module and to apply it. What it takes is looked up by
#' name, in R functions as well as in Python's:
#'
#' | argument | gets |
#' |---|---|
#' | `inputs`; without one of that name, the first after the module | the layer's input, whole |
#' | `training`, `train`, `is_training`, `enable_dropout`, `update_stats` | `TRUE` in `fit()`, `FALSE` otherwise |
#' | `deterministic`, `use_running_average` | the opposite |
#' | `mask` | the mask that Keras has computed for the input, where there is one |
#' | any other | its default; without one it is an error |
#'
#' A named list whose names are all arguments of the method is spread over them, unless that leaves out an argument `inputs`,
#' which then gets the list whole. A list without names is spread over several arguments without a default. A mode argument
#' that is also a field of the module, and set there, is left to the field; a field of such a name that is `NULL`, where the
#' method has no such argument, is set for the call.
#'
#' Keras nests lists and named lists alone. Where a module returns something else (a dataclass, the outputs of a Hugging Face
#' model), a Keras tensor comes back for each field, in a named list, and what is `NULL` is left out; an eager call of the layer
#' returns what the module returned.
#'
#' # Variables
#' The collection `params` becomes trainable weights, every other one non-trainable state. What the module writes to its
#' state is kept, in training and at inference. Each weight has its Flax path in its name: `<layer>/params/Dense_0/kernel`.
#' Without `variables`, initial values are those of `module$init(jax$random$key(seed), inputs)` with `training` `FALSE`, for
#' the true shapes and dtypes of the input; where they depend on its values, on those of the first call, and on ones where the
#' layer is built without any. [flax_variables()] has the variables as they are, and sets
#' what is assigned to it.
#'
#' `regularizers = list("params/**/kernel" = regularizer_l2(1e-4))` penalises every kernel, `constraints` likewise constrains
#' weights. In such a pattern `*` stands for any part of one name and `**` for any number of names; one that no trainable weight
#' fits is an error.
#'
#' # NNX
#' A module of `flax$nnx` holds its values, which the layer copies; `variables` replace those that they name. Until the module
#' is removed, the weights take twice their memory: [flax_lazy()] builds without a second copy. The module itself is not
#' changed, and `layer$to_flax()` returns a module like it with the layer's values (for
#' Linen, the module and its variables). `nnx$Param` and classes derived from it are trained; every other class of variables is
#' state. They are grouped by collection as Flax's own bridge names them, and by the name of their class where it has none;
#' arrays that are plain attributes are the collection `arrays`. Unless the method takes the mode, the layer sets
#' `deterministic` and `use_running_average` of all parts. Random streams are the module's own state; where a method takes
#' `rngs`, and the module has none, they come from the layer's `seed`. A call may not make or remove variables. [flax_lazy()]
#' leaves the making of the module to the layer.
#'
#' # State and randomness
#' The random number streams that a module asks for are supplied by name, and need not be declared. With the same `seed` a
#' run repeats; the state of the streams is saved with the weights. With `trainable = FALSE` the module runs as at inference,
#' as Keras's own batch normalization does.
#'
#' What a module sows into the collection `losses` is summed up and added to the model's losses; [flax_sown()] has what the last
#' eager call sowed. The module's code runs once for each mode and each shape of the input, and is compiled: an R variable that
#' it reads from outside has the value of that time, and `rnorm()` in it draws once.
#'
#' # Errors
#' Misuse ends in a condition of class `kerasflax_error_<cause>` over `kerasflax_error`, where the cause is one of `object`,
#' `module`, `method`, `variables`, `argument`, `field`, `shape`, `state`, `tracer` or `backend`, and in the functions for
#' variables and for saving `not_built`, `file`, `package` or `config`. A condition signalled by R code inside a module arrives
#' as itself. What goes to Python by another way, such as `fit()` or `layer(x)`, carries the same facts in the text of a Python
#' error.
#'
#' R code in a module must come back to Python: a `tryCatch()` around the call that catches warnings or messages would leave
#' Python half way, and with reticulate R does not survive that. `withCallingHandlers()` does no harm.
#'
#' @param object What to put the layer behind: a [keras3::keras_model_sequential()], to which the layer is added in place; a
#'   [keras3::keras_input()] or another Keras tensor, or a (nested, named) list of them; an array (of R, NumPy or JAX), on
#'   which the layer is called at once. Missing or `NULL`: the layer alone is returned.
#' @param module An instance of `flax$linen$Module` or `flax$nnx$Module`: of a class from Python, or of one defined in R with
#'   `%py_class%` or [flax_module()]. Or what [flax_lazy()] returns.
#' @param method The method to call. `NULL` stands for `__call__`. A name, a method of the module, or a function, of R or
#'   Python, that takes the module as its first argument.
#' @param variables The module's variables, as `module$init()` returns them: a named list of collections (`params` and
#'   others), a Python dict or a FrozenDict. They are used in place of initial values. Arrays are copied to where Keras
#'   keeps its variables (the layout of a distribution, or else the default device), so that training does not change yours.
#'   `params` must have the shapes that the module gives them, other collections may have others (a cache for longer
#'   sequences).
#' @param ... For the layer itself, by name: `name`; `trainable`; `dtype`, a dtype or policy that rules the params and the
#'   computation in place of the dtypes that the module declares; `seed`, a whole number from 0 to 2^32 - 1;
#'   `regularizers` and `constraints`, named lists by pattern of paths; `activity_regularizer`; `autocast`.
#'
#' @returns Depends on `object`:
#' * a sequential model: the model, invisibly;
#' * Keras tensors: the output tensor or tensors;
#' * an array: the output, a JAX array;
#' * missing or `NULL`: the layer, which can be called and piped into, `input |> layer()`.
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' nn <- flax$linen
#'
#' # One step per assignment: Flax numbers Dense_0, Dense_1 in the order in which they are made,
#' # and R makes the parts of a pipe from its end.
#' MyFlaxModule(nn$Module) %py_class% {
#'   `__annotations__` <- reticulate::dict(units = reticulate::import_builtins()$int)
#'   units <- 64L
#'
#'   `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
#'     x <- (nn$Dense(self$units))(inputs)
#'     x <- (nn$Dropout(0.5))(nn$relu(x), deterministic = !training)
#'     (nn$Dense(10L))(x)
#'   })
#' }
#'
#' input <- keras_input(c(28 * 28))
#' output <- input |> layer_flax_module_wrapper(MyFlaxModule(units = 128L))
#' model <- keras_model(input, output)
#' @export
layer_flax_module_wrapper <- function(object, module, method = NULL, variables = NULL, ...) {
  # Before the layer is made: the layers of a pipe are created, and so named, in its order.
  object <- if (missing(object)) NULL else object
  check_backend()
  check_object(object, module_is_missing = missing(module))
  module <- if (missing(module)) NULL else module
  check_module(module)
  check_method(method)
  if (!is.null(variables)) {
    check_variables(variables)
  }
  dots <- list(...)
  check_layer_arguments(dots)

  # An R function is called what its user calls it.
  method_name <- substitute(method)
  method_name <- if (is.symbol(method_name)) as.character(method_name) else "method"
  layer <- call_core(
    "FlaxLayer",
    module,
    method = as_method(method, method_name),
    variables = as_variables(variables),
    !!!as_layer_arguments(dots),
    # Keras's own errors about the layer's arguments.
    .otherwise = "argument"
  )
  with_r_conditions(if (is.null(object)) layer else compose(object, layer))
}

compose <- function(object, layer) {
  if (is_sequential(object)) {
    # Keras adds a layer before it builds it: one that cannot be built would stay, and break the model.
    before <- length(object$layers)
    added <- FALSE
    on.exit(if (!added && length(object$layers) > before) object$pop())
    result <- layer(object)
    added <- TRUE
    invisible(result)
  } else {
    layer(object)
  }
}
