#' Define a Flax module in R
#'
#' @description
#' `flax_module()` defines a class of Flax modules and returns its constructor: a function whose
#' arguments are the module's fields. The constructor returns an instance of a real
#' `flax$linen$Module` or `flax$nnx$Module`. Use it with [layer_flax_module_wrapper()], as a field
#' of another module, or in Python.
#'
#' # Fields
#' A named argument that is not a method is a field with that default. The default determines the
#' type of the field. A number, an integer, a logical or a string accepts only values of that type
#' (a whole number such as `32` is accepted for an integer). A vector of several elements becomes a
#' tuple, and a named list becomes a dict. If the default is `NULL` or anything else, the field
#' accepts any value. `flax_field()` declares a field without a default. In a method, read a field
#' as `self$<field>`.
#'
#' # Methods
#' A named argument that is a function whose first argument is `self` is a method. The layer calls
#' `call`, which takes `inputs` and optionally `training`; see [layer_flax_module_wrapper()]. `call`
#' can create submodules where it uses them, unless a method `setup` exists. In that case, `setup`
#' creates them: `self$dense <- nn$Dense(10)`.
#'
#' # NNX
#' With `api = "nnx"`, the class is a subclass of `flax$nnx$Module`. Its `setup` takes `rngs`, and
#' creates all submodules with it: `self$dense <- nnx$Linear(3L, self$units, rngs = rngs)`. The
#' layer sets the mode from outside, so `call` does not need `training`.
#'
#' The constructor has an extra argument `rngs`. If you omit it, the layer creates the module with
#' the layer's seed, as with [flax_lazy()]. With `nnx$Rngs(0L)`, the module is created immediately.
#' If a module without `rngs` is a field of another module, or `setup` assigns it to the other
#' module, it is created with the `rngs` of the other module, after `setup` has run.
#'
#' # Saving
#' [save_model()] writes the name of the class and the fields. A session that loads the model must
#' first run the code that defines the module, under the same name. If its name differs, pass the
#' constructor: `load_model(custom_objects = list(MLP = my_mlp))`.
#'
#' @param .name The name of the class.
#' @param ... Fields and methods, by name.
#' @param call The method that the layer calls.
#' @param api The module system: `"linen"` or `"nnx"`.
#' @param type The type of the field: `"integer"`, `"double"`, `"logical"`, `"character"` or
#'   `"any"`.
#'
#' @returns `flax_module()` returns a constructor: a function of class `flax_module` that creates a
#'   module. It prints its fields and methods. `flax_field()` returns the description of a field for
#'   `flax_module()`.
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
        i = "Pass {.code call = function(self, inputs, training = FALSE) ...}."
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
        "{.arg setup} must take {.arg rngs}, which it needs to create submodules.",
        i = "Pass {.code setup = function(self, rngs) ...}."
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
  defaults <- vapply(
    fields,
    \(field) if (field$is_required) field$type else format_default(field$default),
    ""
  )
  cat(
    "<flax_module> ",
    attr(x, "name"),
    "(",
    toString(sprintf("%s = %s", names(defaults), defaults)),
    ")\n",
    sep = ""
  )
  methods <- attr(x, "methods")
  if (length(methods) > 0) {
    cat("methods: call, ", paste(methods, collapse = ", "), "\n", sep = "")
  }
  invisible(x)
}

# In Python, the constructor is its class, for example in `custom_objects` or as an argument of a
# module.

#' @exportS3Method reticulate::r_to_py flax_module
r_to_py.flax_module <- function(x, convert = FALSE) {
  environment(x)$class
}

format_default <- function(value) {
  if (is_python_object(value)) reticulate::py_repr(value) else deparse(value)[[1]]
}

# Creates an instance. The constructor's arguments are the variables in its frame.
construct_module <- function(class, fields, api, frame) {
  given <- mget(as.character(names(fields)), envir = frame, inherits = FALSE)
  missing <- names(given)[vapply(given, rlang::is_missing, NA)]
  if (length(missing) > 0) {
    abort_kerasflax(
      c(
        "{.fn {class$`__name__`}} requires {.arg {missing}}.",
        i = "Pass {cli::qty(length(missing))}{?it/them} by name."
      ),
      cause = "field",
      call = frame
    )
  }
  values <- Map(
    \(field, value, name) as_field_value(coerce_field(value, field$type, name, frame)),
    fields,
    given,
    names(fields)
  )
  if (api == "linen") {
    with_r_conditions(rlang::exec(class, !!!values), call = frame)
  } else if (is.null(frame$rngs)) {
    # The layer has random streams, so it creates the module.
    call_core("LazyModule", class, !!!values, .call = frame)
  } else {
    with_r_conditions(rlang::exec(class, !!!values, rngs = frame$rngs), call = frame)
  }
}

# Converts a value to the type of its field. NULL is valid for every type.
coerce_field <- function(value, type, name, call) {
  if (is.null(value) || is_python_object(value)) {
    return(value)
  }
  if (is.atomic(value) && !is.double(value) && anyNA(value)) {
    abort_kerasflax(
      c("{.arg {name}} must not be NA, which Python cannot represent.", i = "Pass NULL instead."),
      cause = "field",
      call = call
    )
  }
  if (is.character(value)) {
    check_encoding(value, name, cause = "field", call = call)
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
      c("{.arg {name}} must be of type {.val {type}}.", x = "It is {describe(value)}."),
      cause = "field",
      call = call
    )
  }
  storage.mode(value) <- type
  value
}

# Converts vectors to tuples, which Flax uses for shapes.
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

# The type of a field in the Python class. A tuple of integers has no simple type.
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
  if (is.character(name)) {
    check_encoding(name, ".name", call = call)
  }
  if (!rlang::is_string(name) || !grepl("^[A-Za-z][A-Za-z0-9_]*$", name)) {
    abort_kerasflax(
      c(
        "{.arg .name} must be a class name: a letter, followed by letters, digits and underscores.",
        x = "It is {describe(name)}."
      ),
      cause = "argument",
      call = call
    )
  }
}

# Flax uses these names in every module.
reserved_fields <- c("parent", "name", "scope", "self", "call")

check_module_parts <- function(parts, reserved, call = caller_env()) {
  names <- names(parts) %||% rep("", length(parts))
  check_encoding(names, "names(...)", "Use letters, digits and underscores.", call = call)
  is_valid <- grepl("^[A-Za-z][A-Za-z0-9_]*$", names)
  is_na <- vapply(parts, \(x) is.atomic(x) && !is.double(x) && anyNA(x), NA)
  unnamed <- which(!nzchar(names))
  problem <- if (length(unnamed) > 0) {
    c(
      "Fields and methods must have names.",
      x = "{cli::qty(unnamed)}Argument{?s} {unnamed} of {.arg ...} {?has/have} no name.",
      i = "Pass, for example, {.code units = 64L}."
    )
  } else if (!all(is_valid)) {
    c(
      "Names of fields and methods must consist of letters, digits and underscores.",
      x = "Got {.val {names[!is_valid]}}."
    )
  } else if (anyDuplicated(names)) {
    c(
      "Fields and methods must have unique names.",
      x = "{.val {unique(names[duplicated(names)])}} occur{?s/} twice."
    )
  } else if (any(is_na)) {
    c(
      "A field must not be NA, which Python cannot represent.",
      x = "{.arg {names[is_na]}} {?is/are} NA.",
      i = "Use {.code NULL} instead."
    )
  } else if ("setup" %in% names && !is_r_method(parts$setup)) {
    c(
      "{.arg setup} must be a function whose first argument is {.arg self}.",
      x = if (is.function(parts$setup)) {
        "It does not take {.arg self}."
      } else {
        "It is {describe(parts$setup)}."
      }
    )
  } else if (any(names %in% c(reserved_fields, reserved))) {
    c(
      "Fields and methods must not have names that Flax reserves.",
      x = "Got {.val {intersect(names, c(reserved_fields, reserved))}}."
    )
  }
  if (!is.null(problem)) {
    abort_kerasflax(problem, cause = "argument", call = call)
  }
  for (name in names[vapply(parts, is.character, NA)]) {
    check_encoding(parts[[name]], name, call = call)
  }
}
