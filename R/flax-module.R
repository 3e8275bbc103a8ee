#' Define a Flax module in R
#'
#' @description
#' `flax_module()` defines a class of Flax modules and returns its constructor: a function whose arguments are the module's
#' fields. What it makes is an instance of a real `flax$linen$Module`, or `flax$nnx$Module`, for
#' [layer_flax_module_wrapper()], as a field of other modules, and for Python.
#'
#' # Fields
#' A named argument that is no method is a field with its default, from which its type follows: a number, an integer, a logical
#' or a string is kept to that type (`32` does where the default is an integer), a vector of several becomes a tuple, a named
#' list a dict, and with `NULL` or anything else every value will do. `flax_field()` is a field without a default. In a method
#' it is `self$<field>`.
#'
#' # Methods
#' A named argument that is a function with `self` as its first argument is a method. `call` is what the layer calls: it takes
#' `inputs`, and may take `training`; see [layer_flax_module_wrapper()]. It may make submodules where it uses them, unless
#' there is a method `setup`, which then makes them: `self$dense <- nn$Dense(10)`.
#'
#' # NNX
#' With `api = "nnx"` the class is one of `flax$nnx$Module`. There `setup` takes `rngs`, and makes all submodules with it:
#' `self$dense <- nnx$Linear(3L, self$units, rngs = rngs)`. The mode is set from outside: `call` need not take `training`.
#' The constructor has one more argument, `rngs`: without it, the layer makes the module, with the layer's seed, as with
#' [flax_lazy()]; with `nnx$Rngs(0L)` it is made at once. A module without it that is a field of another, or that `setup` leaves
#' in one, is made with the other's `rngs`, when `setup` has run.
#'
#' # Saving
#' [save_model()] writes the class's name and the fields. The session that loads the model has to have run the code that
#' defines the module, under the same name; a module of another name is given as
#' `load_model(custom_objects = list(MLP = my_mlp))`, by its constructor.
#'
#' @param .name The class's name.
#' @param ... Fields and methods, by name.
#' @param call The method that the layer calls.
#' @param api The module system: `"linen"`, or `"nnx"`.
#' @param type The field's type: `"integer"`, `"double"`, `"logical"`, `"character"`, or `"any"`.
#'
#' @returns `flax_module()`: a function that makes a module, of class `flax_module`; it prints what it is. `flax_field()`: the
#'   description of a field, for `flax_module()`.
#'
#' @examplesIf interactive()
#' nn <- reticulate::import("flax.linen")
#' mlp <- flax_module("MLP",
#'   units = 64L, rate = 0.1, classes = flax_field("integer"),
#'   call = function(self, inputs, training = FALSE) {
#'     x <- nn$relu((nn$Dense(self$units))(inputs))
#'     x <- (nn$Dropout(self$rate))(x, deterministic = !training)
#'     (nn$Dense(self$classes))(x)
#'   }
#' )
#' mlp
#' model <- keras_model_sequential(784) |>
#'   layer_flax_module_wrapper(mlp(units = 32, classes = 10))
#'
#' nnx <- reticulate::import("flax.nnx")
#' mlp <- flax_module("MLP",
#'   inputs = 784L, units = 64L, rate = 0.1, api = "nnx",
#'   setup = function(self, rngs) {
#'     self$hidden <- nnx$Linear(self$inputs, self$units, rngs = rngs)
#'     self$dropout <- nnx$Dropout(self$rate, rngs = rngs)
#'     self$out <- nnx$Linear(self$units, 10L, rngs = rngs)
#'   },
#'   call = function(self, inputs) {
#'     x <- nnx$relu(self$hidden(inputs))
#'     self$out(self$dropout(x))
#'   }
#' )
#' model <- keras_model_sequential(784) |>
#'   layer_flax_module_wrapper(mlp(units = 32))
#' @export
flax_module <- function(.name, ..., call, api = c("linen", "nnx")) {
  api <- rlang::arg_match(api)
  check_class_name(.name)
  parts <- rlang::list2(...)
  check_module_parts(parts, if (api == "nnx") "rngs")
  is_method <- vapply(parts, is_r_method, NA)
  if (missing(call) || !is_r_method(call)) {
    abort_kerasflax(
      c(
        "{.arg call} must be a function whose first argument is {.arg self}.",
        i = "Give {.code call = function(self, inputs, training = FALSE) ...}."
      ),
      cause = "argument"
    )
  }
  if (
    api == "nnx" &&
      "setup" %in% names(parts[is_method]) &&
      !any(c("rngs", "...") %in% names(formals(parts$setup)))
  ) {
    abort_kerasflax(
      c(
        "{.arg setup} must take {.arg rngs}, to make submodules with.",
        i = "Give {.code setup = function(self, rngs) ...}."
      ),
      cause = "argument"
    )
  }
  fields <- lapply(parts[!is_method], as_flax_field)
  methods <- c(parts[is_method], list(`__call__` = call))
  is_required <- vapply(fields, \(field) field$is_required, NA)
  types <- lapply(fields, \(field) python_type(field$type))
  class <- call_core(
    "module_class",
    api,
    .name,
    "<r-globalenv>",
    required = as_named_dict(types[is_required]),
    optional = as_named_dict(Map(with_default, types, fields)[!is_required]),
    methods = as_named_dict(lapply(methods, \(method) reticulate::r_to_py(method, convert = TRUE)))
  )
  arguments <- lapply(fields, \(field) {
    if (field$is_required) rlang::missing_arg() else field$default
  })
  if (api == "nnx") {
    arguments <- c(arguments, list(rngs = NULL))
  }
  constructor <- rlang::new_function(
    as.pairlist(arguments),
    quote(construct_module(class, fields, api, rlang::current_env())),
    rlang::env(asNamespace("kerasflax"), class = class, fields = fields, api = api)
  )
  structure(
    constructor,
    class = c("flax_module", "function"),
    name = .name,
    methods = setdiff(names(methods), "__call__")
  )
}

#' @rdname flax_module
#' @export
flax_field <- function(type = c("any", "integer", "double", "logical", "character")) {
  structure(
    list(type = rlang::arg_match(type), is_required = TRUE, default = NULL),
    class = "flax_field"
  )
}

#' @export
print.flax_module <- function(x, ...) {
  fields <- environment(x)$fields
  shown <- vapply(
    fields,
    \(field) if (field$is_required) field$type else shown_default(field$default),
    ""
  )
  cat(
    "<flax_module> ",
    attr(x, "name"),
    "(",
    toString(sprintf("%s = %s", names(shown), shown)),
    ")\n",
    sep = ""
  )
  methods <- attr(x, "methods")
  if (length(methods) > 0) {
    cat("methods: call, ", paste(methods, collapse = ", "), "\n", sep = "")
  }
  invisible(x)
}

# Python knows the constructor as the class that it stands for: in `custom_objects`, or where a module takes a class.

#' @exportS3Method reticulate::r_to_py flax_module
r_to_py.flax_module <- function(x, convert = FALSE) {
  environment(x)$class
}

shown_default <- function(value) {
  if (is_python_object(value)) reticulate::py_repr(value) else deparse(value)[[1]]
}

# Makes an instance from the arguments of a constructor, which are the variables of its frame.
construct_module <- function(class, fields, api, frame) {
  given <- mget(as.character(names(fields)), envir = frame, inherits = FALSE)
  missing <- names(given)[vapply(given, rlang::is_missing, NA)]
  if (length(missing) > 0) {
    abort_kerasflax(
      c(
        "{.fn {class$`__name__`}} needs {.arg {missing}}.",
        i = "Give {cli::qty(length(missing))}{?it/them} by name."
      ),
      cause = "field",
      call = frame
    )
  }
  values <- Map(
    \(field, value, name) as_field_value(coerced(value, field$type, name, frame)),
    fields,
    given,
    names(fields)
  )
  if (api == "linen") {
    with_r_conditions(rlang::exec(class, !!!values), call = frame)
  } else if (is.null(frame$rngs)) {
    # The layer, which has random streams, makes the module.
    call_core("LazyModule", class, !!!values, .call = frame)
  } else {
    with_r_conditions(rlang::exec(class, !!!values, rngs = frame$rngs), call = frame)
  }
}

# A value of a field as one of its type; NULL is one of every type.
coerced <- function(value, type, name, call) {
  if (is.null(value) || is_python_object(value)) {
    return(value)
  }
  if (is.atomic(value) && !is.double(value) && anyNA(value)) {
    abort_kerasflax(
      c("{.arg {name}} is NA, for which Python has no value.", i = "Give NULL, say."),
      cause = "field",
      call = call
    )
  }
  if (type == "any") {
    return(value)
  }
  is_right <- switch(
    type,
    integer = is.numeric(value) &&
      all(is.finite(value) & value == trunc(value) & abs(value) <= .Machine$integer.max),
    double = is.numeric(value),
    logical = is.logical(value),
    character = is.character(value)
  )
  if (!isTRUE(is_right)) {
    abort_kerasflax(
      c("{.arg {name}} must be of type {.val {type}}.", x = "It is {what_is(value)}."),
      cause = "field",
      call = call
    )
  }
  storage.mode(value) <- type
  value
}

# Vectors as tuples, in which Flax keeps shapes.
as_field_value <- function(value) {
  if (is.atomic(value) && is.null(dim(value)) && length(value) != 1 && !is.null(value)) {
    do.call(reticulate::tuple, as.list(unname(value)))
  } else {
    value
  }
}

as_flax_field <- function(default) {
  if (inherits(default, "flax_field")) {
    return(default)
  }
  is_simple <- is.atomic(default) &&
    !is.object(default) &&
    is.null(dim(default)) &&
    !is.null(default)
  type <- if (is_simple) typeof(default) else "any"
  list(
    type = if (type %in% eval(formals(flax_field)$type)) type else "any",
    is_required = FALSE,
    default = default
  )
}

# What the class says of a field. A tuple of integers is of no simple type.
python_type <- function(type) {
  builtins <- reticulate::import_builtins(convert = FALSE)
  switch(
    type,
    integer = builtins$int,
    double = builtins$float,
    logical = builtins$bool,
    character = builtins$str,
    reticulate::import("typing", convert = FALSE)$Any
  )
}

with_default <- function(type, field) reticulate::tuple(type, as_field_value(field$default))

as_named_dict <- function(values) reticulate::py_dict(as.list(names(values)), unname(values))

is_r_method <- function(x) {
  is.function(x) && !is_python_object(x) && identical(names(formals(x))[1], "self")
}

check_class_name <- function(name, call = caller_env()) {
  if (!rlang::is_string(name) || !grepl("^[A-Za-z][A-Za-z0-9_]*$", name)) {
    abort_kerasflax(
      c(
        "{.arg .name} must be the name of a class: letters, digits and underscores.",
        x = "It is {what_is(name)}."
      ),
      cause = "argument",
      call = call
    )
  }
}

# Flax's own names for what every module has.
reserved_fields <- c("parent", "name", "scope", "self", "call")

check_module_parts <- function(parts, reserved, call = caller_env()) {
  names <- names(parts) %||% rep("", length(parts))
  problem <- if (!all(grepl("^[A-Za-z][A-Za-z0-9_]*$", names))) {
    "Fields and methods need names of letters, digits and underscores."
  } else if (anyDuplicated(names)) {
    "Two fields or methods have the name {.val {names[duplicated(names)][[1]]}}."
  } else if (any(vapply(parts, \(x) is.atomic(x) && !is.double(x) && anyNA(x), NA))) {
    "A field is NA, for which Python has no value: give {.code NULL}, say."
  } else if ("setup" %in% names && !is_r_method(parts$setup)) {
    "{.code setup} must be a function whose first argument is {.arg self}."
  } else if (any(names %in% c(reserved_fields, reserved))) {
    "Every Flax module has a {.val {intersect(names, c(reserved_fields, reserved))[[1]]}} of its own."
  }
  if (!is.null(problem)) {
    abort_kerasflax(
      c(problem, x = "Their names are {.val {names}}."),
      cause = "argument",
      call = call
    )
  }
}
