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
#' type of the field. A number, an integer, a logical or a string accepts only values of that type,
#' and not `NULL` (a whole number such as `32` is accepted for an integer). A vector of several
#' elements becomes a tuple, and a named list becomes a dict. If the default is `NULL` or anything
#' else, the field accepts any value. `flax_field()` declares a field without a default. In a
#' method, read a field as `self$<field>`.
#'
#' # Methods
#' A named argument that is a function whose first argument is `self` is a method. The layer calls
#' `call`, which takes `inputs` and optionally `training`; see [layer_flax_module_wrapper()]. `call`
#' can create submodules where it uses them, unless a method `setup` exists. In that case, `setup`
#' creates them: `self$dense <- nn$Dense(10)`.
#'
#' # R functions on tensors
#' Inside a module, a tensor has a shape and a dtype, but no values yet. These functions work on it:
#' operators, also with an R vector, which is combined with the last axis; `mean()`, `sum()`,
#' `max()`, `exp()` and other generics; `dim()`, `nrow()`, `ncol()` and `length()`; `%*%`, `pmax()`,
#' `pmin()`, `rowSums()`, `rowMeans()`, `colSums()` and `colMeans()`. Other functions of R, such as
#' `apply()`, `sd()` or `x[1, ]`, stop and name the operation of keras3 to use.
#'
#' Functions that are not generic (`rowSums()`, and before R 4.3 `%*%`) work in methods of a
#' `flax_module()` and in the `method` of a layer. In a helper function or a `%py_class%`, they
#' stop, with the same advice. There, `c(1, x)` returns a list, and `x * c(1, 2)` is an error.
#' Before R 4.3, `x@r[...]` is an error everywhere; use `op_subset()`. Functions of other packages
#' may return wrong results.
#'
#' Keras layers, variables and seed generators are errors inside a module, because nothing would
#' keep their weights or state. Operations such as `op_relu()` are available.
#'
#' # Packages and sessions
#' A definition at the top level of a package, in an RDS file or in a saved workspace can be used in
#' any session: its Python class is created when a session first uses it. `load_model()` finds the
#' definitions of loaded packages that depend on kerasflax. Objects from Python, such as a module,
#' exist in one session only. A package therefore imports `flax.linen` in `.onLoad()` or in
#' a method.
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
#' @seealso [layer_flax_module_wrapper()], [flax_lazy()], `vignette("modules-in-r")`
#' @examplesIf kerasflax:::runs_examples()
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
#' model <- keras_model_sequential(4) |>
#'   layer_flax_module_wrapper(mlp(units = 32, classes = 3), name = "mlp")
#' flax_parameters(model)
#'
#' nnx <- reticulate::import("flax.nnx")
#' net <- flax_module("Net",
#'   inputs = 4L, units = 64L, rate = 0.1, api = "nnx",
#'   setup = function(self, rngs) {
#'     self$hidden <- nnx$Linear(self$inputs, self$units, rngs = rngs)
#'     self$dropout <- nnx$Dropout(self$rate, rngs = rngs)
#'     self$out <- nnx$Linear(self$units, 3L, rngs = rngs)
#'   },
#'   call = function(self, inputs) {
#'     x <- nnx$relu(self$hidden(inputs))
#'     self$out(self$dropout(x))
#'   }
#' )
#' model <- keras_model_sequential(4) |>
#'   layer_flax_module_wrapper(net(units = 32), name = "net")
#' predict(model, as.matrix(iris[1:3, 1:4]), verbose = 0)
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
  definition <- rlang::env(
    emptyenv(),
    name = .name,
    api = api,
    fields = fields,
    methods = c(parts[is_method], list(`__call__` = call))
  )
  definition$class <- new_remade(\(call) module_class(definition, call))
  remember_definition(definition)
  arguments <- lapply(fields, \(field) {
    if (field$is_required) rlang::missing_arg() else field$default$value
  })
  if (api == "nnx") {
    arguments <- c(arguments, list(rngs = NULL))
  }
  constructor <- rlang::new_function(
    # R's error about an unused argument would not help a user who pipes an input into it.
    as.pairlist(c(arguments, list(... = rlang::missing_arg()))),
    quote(construct_module(rlang::current_env())),
    rlang::env(asNamespace("kerasflax"), definition = definition)
  )
  structure(constructor, class = c("flax_module", "function"))
}

# The Python class of a module that is defined in R.
module_class <- function(definition, call) {
  fields <- definition$fields
  is_required <- vapply(fields, \(field) field$is_required, NA)
  types <- lapply(fields, \(field) python_type(field$type))
  defaults <- Map(
    \(type, field, name) {
      reticulate::tuple(type, as_field_value(kept_value(field$default, name, call)))
    },
    types[!is_required],
    fields[!is_required],
    names(fields)[!is_required]
  )
  methods <- lapply(definition$methods, \(method) {
    reticulate::r_to_py(masked(method), convert = TRUE)
  })
  call_core(
    "module_class",
    definition$api,
    definition$name,
    "<r-globalenv>",
    required = as_named_dict(types[is_required]),
    optional = as_named_dict(defaults),
    methods = as_named_dict(methods),
    .call = call
  )
}

# Python finds the classes of a saved model by their names, so it must be able to ask for the
# classes that no session has used yet: `r_define_modules()`.
remember_definition <- function(definition) {
  if (is.null(definition$class$object)) {
    the$definitions <- c(the$definitions, definition)
  }
}

r_define_modules <- function() {
  definitions <- the$definitions
  the$definitions <- list()
  places <- c(list(globalenv()), lapply(dependents(), asNamespace))
  for (place in places) {
    constructors <- Filter(\(value) inherits(value, "flax_module"), as.list(place))
    definitions <- c(definitions, lapply(constructors, \(x) environment(x)$definition))
  }
  # A definition with an error signals it when it is used.
  for (definition in definitions) tryCatch(remade(definition$class), kerasflax_error = identity)
}

# The loaded packages that depend on kerasflax.
dependents <- function() {
  depends <- function(package) {
    fields <- utils::packageDescription(package, fields = c("Depends", "Imports"))
    any(grepl("\\bkerasflax\\b", unlist(fields)))
  }
  Filter(depends, setdiff(loadedNamespaces(), c("base", "kerasflax")))
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
  definition <- environment(x)$definition
  cat("<flax_module> ", constructor_text(x), "\n", sep = "")
  methods <- setdiff(names(definition$methods), "__call__")
  if (length(methods) > 0) {
    cat("methods: call, ", paste(methods, collapse = ", "), "\n", sep = "")
  }
  invisible(x)
}

# In Python, the constructor is its class, for example in `custom_objects` or as an argument of a
# module.

#' @exportS3Method reticulate::r_to_py flax_module
r_to_py.flax_module <- function(x, convert = FALSE) {
  remade(environment(x)$definition$class)
}

format_default <- function(value) {
  if (is_from_earlier_session(value)) {
    "<Python object>"
  } else if (inherits(value, "flax_module")) {
    environment(value)$definition$name
  } else if (inherits(value, "flax_lazy")) {
    "<flax_lazy>"
  } else if (is_python_object(value)) {
    reticulate::py_repr(value)
  } else {
    deparse(value)[[1]]
  }
}

# Creates an instance. The constructor's arguments are the variables in its frame, and may have any
# names.
construct_module <- function(frame) {
  definition <- environment(sys.function(sys.parent()))$definition
  fields <- definition$fields
  given <- mget(as.character(names(fields)), envir = frame, inherits = FALSE)
  missing <- names(given)[vapply(given, rlang::is_missing, NA)]
  unused <- eval(as.call(list(base::list, quote(...))), frame)
  rngs <- if (definition$api == "nnx") list(rngs = frame$rngs)
  check_not_called(c(given[setdiff(names(given), missing)], rngs, unused), definition, frame)
  check_no_unused(unused, definition, frame)
  if (length(missing) > 0) {
    abort_kerasflax(
      c(
        "{.fn {definition$name}} requires {.arg {missing}}.",
        i = "Pass {cli::qty(length(missing))}{?it/them} by name."
      ),
      cause = "field",
      call = frame
    )
  }
  values <- Map(
    \(field, value, name) coerce_field(value, field, name, frame),
    fields,
    given,
    names(fields)
  )
  if (definition$api == "nnx" && is.null(frame$rngs)) {
    # The layer has random streams, so it creates the module.
    return(new_lazy(\() remade(definition$class), values, call = frame))
  }
  class <- remade(definition$class, frame)
  values <- lapply(values, as_field_value)
  with_r_conditions(rlang::exec(class, !!!values, !!!rngs), call = frame)
}

# A constructor creates a module; it is not a layer that an input is piped into.
check_not_called <- function(given, definition, frame) {
  names <- names(given) %||% rep("", length(given))
  # Only a field of any type may be a matrix.
  is_any <- vapply(names, \(name) identical(definition$fields[[name]]$type, "any"), NA)
  is_matrix <- vapply(given, \(x) !is_python_object(x) && length(dim(x)) > 1, NA)
  is_an_input <- vapply(given, is_input, NA) | is_matrix & !is_any
  if (!any(is_an_input)) {
    return(invisible())
  }
  name <- names[is_an_input][[1]]
  got <- escape_braces(describe(given[is_an_input][[1]]))
  constructor <- escape_braces(rlang::as_label(rlang::frame_call(frame)[[1]]))
  abort_kerasflax(
    c(
      paste0("{.fn ", constructor, "} creates a module; it cannot be called on an input."),
      x = if (name %in% names(definition$fields)) {
        paste0("{.arg {name}} is a field of {definition$name}, and it is ", got, ".")
      } else {
        paste0("One argument is ", got, ".")
      },
      i = "Pipe the input into the layer: \
      {.code input |> layer_flax_module_wrapper({constructor}(...))}."
    ),
    cause = "field",
    call = frame
  )
}

is_input <- function(value) {
  is_keras_tensor(value) ||
    is_sequential(value) ||
    is.list(value) && !is.object(value) && any(vapply(value, is_input, NA))
}

check_no_unused <- function(unused, definition, frame) {
  if (length(unused) == 0) {
    return(invisible())
  }
  names <- names(unused) %||% rep("", length(unused))
  labels <- toString(ifelse(nzchar(names), names, vapply(unused, describe, "")))
  fields <- names(definition$fields)
  abort_kerasflax(
    c(
      paste0(
        "{.fn {definition$name}} got ",
        if (length(unused) == 1) "an unused argument: " else "unused arguments: ",
        escape_braces(labels),
        "."
      ),
      i = if (length(fields) > 0) {
        "The fields of {definition$name} are {.arg {fields}}."
      } else {
        "{definition$name} has no fields."
      }
    ),
    cause = "field",
    call = frame
  )
}

# Converts a value to the type of its field. NULL is valid only for a field of any type.
coerce_field <- function(value, field, name, call) {
  type <- field$type
  if (is_from_earlier_session(value)) {
    is_default <- !field$is_required && identical(value, field$default$value)
    value <- kept_value(if (is_default) field$default else list(value = value), name, call)
  }
  if (is_python_object(value) || is.null(value) && type == "any") {
    return(value)
  }
  if (is.atomic(value) && !is.double(value) && anyNA(value)) {
    abort_kerasflax(
      c(
        "{.arg {name}} must not be NA, which Python cannot represent.",
        i = if (type == "any") {
          "Pass NULL instead."
        } else {
          "Pass a value, or give the field the default NULL, and pass NULL."
        }
      ),
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
      c(
        "{.arg {name}} must be of type {.val {type}}.",
        x = "It is {describe(value)}.",
        i = if (is.null(value)) "To allow NULL, make it the default of the field."
      ),
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
    default = keep_value(default)
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

# What other systems call the method that creates the parts.
other_setups <- c("initialize", "initialise", "build")

check_module_parts <- function(parts, reserved, call = caller_env()) {
  names <- names(parts) %||% rep("", length(parts))
  check_encoding(names, "names(...)", "Use letters, digits and underscores.", call = call)
  is_valid <- grepl("^[A-Za-z][A-Za-z0-9_]*$", names)
  is_na <- vapply(parts, \(x) is.atomic(x) && !is.double(x) && anyNA(x), NA)
  unnamed <- which(!nzchar(names))
  problem <- if (length(unnamed) > 0) {
    c(
      "Fields and methods must have names.",
      x = "{cli::qty(length(unnamed))}Argument{?s} {unnamed} of {.arg ...} {?has/have} no name.",
      i = "Pass, for example, {.code units = 64L}, or {.code call = function(self, inputs) ...}."
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
  } else if (any(other_setups %in% names[vapply(parts, is.function, NA)])) {
    c(
      "Flax does not call {.arg {intersect(other_setups, names)[[1]]}}.",
      i = "Name the method {.arg setup}."
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
