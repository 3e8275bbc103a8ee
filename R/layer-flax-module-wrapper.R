#' Create a Keras layer from a Flax module
#'
#' @description
#' Wraps a [Flax](https://flax.readthedocs.io) module, from Python or defined in R, in a Keras
#' layer. Like every `layer_*()` function, it composes with `object`, so you can use it in a pipe.
#' This function masks [keras3::layer_flax_module_wrapper()].
#'
#' # The module's method
#' The layer calls `__call__()`, or `method`, to initialize the module and to apply it. It passes
#' arguments by name, to Python functions and R functions alike:
#'
#' | argument | value |
#' |---|---|
#' | `inputs`, or else the first argument after the module | the whole input of the layer |
#' | `training`, `train`, `is_training`, `enable_dropout`, `update_stats` | `TRUE` only in `fit()` |
#' | `deterministic`, `use_running_average` | the opposite |
#' | `mask` | the mask that Keras computed for the input, if any |
#' | any other | its default; an argument without a default is an error |
#'
#' If all names of a named list are arguments of the method, the list is spread over these
#' arguments, unless that leaves out an argument `inputs`, which then gets the whole list. An
#' unnamed list is spread over several arguments without a default. If a mode argument is also a
#' field of the module, and the field is set, the layer uses the field. If the module has such a
#' field with the value `NULL`, and the method has no such argument, the layer sets the field for
#' the call.
#'
#' Keras nests only lists and named lists. If a module returns something else (a dataclass, or the
#' outputs of a Hugging Face model), you get a named list with a Keras tensor for each field,
#' without the fields that are `NULL`. An eager call of the layer returns the module's own output.
#'
#' A part of the input may be `NULL` in one call and an array in the next, as in
#' `keras_input(optional = TRUE)`. A Linen module must get the part as an array when the layer is
#' built, if the part needs weights. Keras's mask goes on to every output that keeps the axes that
#' it masks, whether or not the module takes it.
#'
#' # Variables
#' The collection `params` becomes trainable weights, and every other collection becomes
#' non-trainable state. The layer keeps what the module writes to its state, in training and at
#' inference. The name of each weight contains its Flax path: `<layer>/params/Dense_0/kernel`.
#' [flax_variables()] returns the current variables, and assigning to it sets them.
#'
#' Without `variables`, the initial values are those of `module$init(jax$random$key(seed), inputs)`
#' with `training` set to `FALSE`, for the actual shapes and dtypes of the input. If they depend on
#' the values of the input, the layer uses the values of the first call, or ones if the layer is
#' built without an input.
#'
#' `regularizers = list("params/**/kernel" = regularizer_l2(1e-4))` penalizes every kernel, and
#' `constraints` constrains weights in the same way. In a pattern, `*` matches any part of one name,
#' and `**` matches any number of names. A pattern that matches no trainable weight is an error.
#'
#' # NNX
#' A `flax$nnx` module holds its values, and the layer copies them; `variables` replaces the values
#' that it names. While the module exists, memory holds its weights twice. [flax_lazy()]
#' lets the layer create the module, without a second copy. The layer does not change the module.
#' `layer$to_flax()` returns a module of the same kind with the layer's values (for Linen, the
#' module and its variables). A module without values, as `nnx$eval_shape()` returns it, needs
#' `variables` for its weights; its random streams start from the layer's `seed`.
#' Two layers of one module have two sets of weights, and a warning says so; to share weights, call
#' one layer twice, or put both uses into one module.
#'
#' `nnx$Param` and its subclasses are trained; all other variable classes are state. Variables are
#' grouped by collection, under the names that Flax's own bridge uses, or under the name of their
#' class if the bridge has none. Arrays in plain attributes form the collection `arrays`. Unless the
#' method takes the mode, the layer sets `deterministic` and `use_running_average` in all
#' submodules. Random streams are part of the module's state; if a method takes `rngs` and the
#' module has none, they come from the layer's `seed`. A call must not create or remove variables.
#' Modules behind `nnx$bridge$ToLinen` and `nnx$bridge$ToNNX` get the mode and random streams, too.
#'
#' # State and randomness
#' Random streams and state are handled for you: the layer supplies the streams that a module asks
#' for, by name. Runs with the same `seed` are identical, and the state of the streams is saved with
#' the weights. With `trainable = FALSE`, the module runs in inference mode, as Keras's own batch
#' normalization does.
#'
#' Values that a module sows into the collection `losses` are summed and added to the model's
#' losses. [flax_sown()] returns what the last eager call sowed. The module's code runs once for
#' each mode and input shape, and is compiled. If it reads an R variable from outside the module, it
#' keeps the value that the variable had when the code ran, and `rnorm()` draws only once.
#'
#' # Errors
#' Errors have class `kerasflax_error_<cause>` and inherit from `kerasflax_error`. The cause is one
#' of `object`, `module`, `method`, `variables`, `argument`, `field`, `shape`, `state`, `tracer`,
#' `unsupported` or `backend`. The functions for variables and for saving add `not_built`, `file`,
#' `package` and `config`. A condition that R code inside a module signals reaches you unchanged.
#' Errors from code that enters Python in another way, such as `fit()` or `layer(x)`, are Python
#' errors whose text contains the same facts.
#'
#' If `fit()`, `evaluate()` or `predict()` stops with an error, Keras may lose the values of all
#' weights of the model, including those of Keras layers. The next use of the weights then says so,
#' except if the model begins with a Keras layer: `'NoneType' object is not callable`. Load the
#' weights from a file with [keras3::load_model_weights()], and compile the model again before you
#' train it further; or create the model again.
#'
#' Do not wrap a call of the layer in a `tryCatch()` that catches warnings or messages: it jumps out
#' of Python's code, and reticulate then crashes R. Use `withCallingHandlers()` instead.
#'
#' @param object The object to compose the layer with. A [keras3::keras_model_sequential()]: the
#'   layer is added to it in place. A [keras3::keras_input()] or another Keras tensor, or a (nested,
#'   named) list of tensors: the layer is called on it. An array (from R, NumPy or JAX): the layer
#'   is called on it immediately. Missing or `NULL`: the layer alone is returned.
#' @param module An instance of `flax$linen$Module` or `flax$nnx$Module`, of a class from Python or
#'   one defined in R with [flax_module()] or `%py_class%`. Or the result of [flax_lazy()].
#' @param method The method to call: the name of a method, a method of the module, or a function in
#'   R or Python that takes the module as its first argument. `NULL` stands for `__call__`.
#' @param variables The module's variables, as returned by `module$init()`: a named list of
#'   collections (`params` and others), a Python dict or a FrozenDict. They replace the initial
#'   values. Arrays are copied to where Keras stores its variables (the layout of a distribution, or
#'   else the default device), so training does not change your arrays. `params` must have the
#'   shapes that the module expects; other collections can have other shapes (a cache for longer
#'   sequences). If the module cannot be initialized for the layer's input, the weights are those in
#'   `variables`.
#' @param ... Arguments for the layer itself, by name: `name`, by default that of the module's class
#'   (`my_flax_module`); `trainable`; `dtype`, a dtype or policy that overrides the dtypes that the
#'   module declares for its params and its computation; `seed`, a whole number from 0 to 2^32 - 1;
#'   `regularizers` and `constraints`, named lists whose names are path patterns;
#'   `activity_regularizer`; `autocast`.
#'
#' @returns Depends on `object`:
#' * a sequential model: the model, invisibly;
#' * Keras tensors: the output tensor or tensors;
#' * an array: the output, a JAX array;
#' * missing or `NULL`: the layer, which you can call or use in a pipe: `input |> layer()`.
#'
#' @seealso [flax_module()] and [flax_lazy()] to create modules, `vignette("kerasflax")`,
#'   `vignette("from-keras3-and-torch")`
#' @examplesIf kerasflax:::runs_examples()
#' flax <- reticulate::import("flax")
#' nn <- flax$linen
#'
#' # Use one assignment for each step: Flax numbers Dense_0 and Dense_1 in the order of creation,
#' # and R evaluates a pipe from its end.
#' MyFlaxModule(nn$Module) %py_class% {
#'   `__annotations__` <- reticulate::dict(units = reticulate::import_builtins()$int)
#'   units <- 64L
#'
#'   `__call__` <- nn$compact(\(self, inputs, training = FALSE) {
#'     x <- (nn$Dense(self$units))(inputs)
#'     x <- (nn$Dropout(0.5))(nn$relu(x), deterministic = !training)
#'     (nn$Dense(3L))(x)
#'   })
#' }
#'
#' input <- keras_input(4)
#' output <- input |> layer_flax_module_wrapper(MyFlaxModule(units = 16L), seed = 1)
#' model <- keras_model(input, output)
#' model
#'
#' model |> compile(
#'   optimizer = "sgd",
#'   loss = loss_sparse_categorical_crossentropy(from_logits = TRUE)
#' )
#' x <- scale(as.matrix(iris[1:4]))
#' y <- as.integer(iris$Species) - 1L
#' history <- model |> fit(x, y, epochs = 2, verbose = 0)
#' predict(model, x[1:2, ], verbose = 0)
#' @export
layer_flax_module_wrapper <- function(object, module, method = NULL, variables = NULL, ...) {
  # Evaluate `object` first, so that the layers of a pipe are created and named in order.
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

  # An R function keeps the name that the user gave it.
  method_name <- substitute(method)
  method_name <- if (is.symbol(method_name)) as.character(method_name) else "method"
  layer <- call_core(
    "FlaxLayer",
    module,
    method = as_method(method, method_name),
    variables = as_variables(variables),
    !!!as_layer_arguments(dots),
    # The cause of Keras's own errors about the layer's arguments.
    .otherwise = "argument"
  )
  with_r_conditions(if (is.null(object)) layer else compose(object, layer))
}

compose <- function(object, layer) {
  if (is_sequential(object)) {
    # Keras adds a layer before it builds the layer. Remove a layer that cannot be built, which
    # would break the model.
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
