# How Flax modules, their classes and Flax layers print in R: class, fields and parts. Python's
# own texts have Python's syntax, and end with a signature that helps nobody in R.

# What a module is made of: a list with its class (`name`) and `api`, named texts of its
# `fields`, `parts` (modules) and `weights`, which fields are short, and the names of its `methods`.
module_facts <- function(x) {
  name <- class_name(x)
  is_linen <- inherits(x, "flax.linen.module.Module")
  values <- if (is_linen) linen_values(x) else nnx_values(x)
  is_part <- vapply(values, \(value) is_instance(value, "flax_module"), NA)
  is_weight <- vapply(values, \(value) inherits(value, "flax.nnx.variablelib.Variable"), NA)
  own <- setdiff(own_methods(reticulate::py_get_attr(x, "__class__")), names(values))
  list(
    name = name,
    api = if (is_linen) "Linen" else "NNX",
    fields = vapply(values[!is_part & !is_weight], value_text, ""),
    is_short = vapply(values[!is_part & !is_weight], \(value) inherits(value, plain_types), NA),
    parts = vapply(values[is_part], module_text, ""),
    weights = vapply(values[is_weight], weight_text, ""),
    methods = own
  )
}

plain_types <- paste0("python.builtin.", c("str", "bool", "int", "float"))

class_name <- function(x) {
  reticulate::py_to_r(reticulate::py_get_attr(reticulate::py_get_attr(x, "__class__"), "__name__"))
}

linen_values <- function(x) {
  fields <- reticulate::py_get_attr(x, "__dataclass_fields__")
  names <- setdiff(as.character(reticulate::import_builtins()$list(fields)), c("parent", "name"))
  lapply(rlang::set_names(names), \(name) reticulate::py_get_attr(x, name, silent = TRUE))
}

nnx_values <- function(x) {
  values <- reticulate::import_builtins(convert = FALSE)$vars(x)
  names <- as.character(reticulate::import_builtins()$list(values))
  names <- grep("^_pytree__|^_", names, value = TRUE, invert = TRUE)
  lapply(rlang::set_names(names), \(name) reticulate::py_get_item(values, name))
}

# The methods that a class itself defines.
own_methods <- function(class) {
  defined <- reticulate::import_builtins(convert = FALSE)$vars(class)
  names <- as.character(reticulate::import_builtins()$list(defined$keys()))
  is_method <- vapply(
    names,
    \(name) inherits(reticulate::py_get_item(defined, name), "python.builtin.function"),
    NA
  )
  names <- sub("^__call__$", "call", names[is_method])
  sort(grep("^_", names, value = TRUE, invert = TRUE))
}

weight_text <- function(x) {
  shape <- reticulate::py_get_attr(x, "shape", silent = TRUE)
  paste0(class_name(x), if (!is.null(shape)) paste0(" ", reticulate::py_str(shape)))
}

# A value in R's words, in a few characters.
value_text <- function(value) {
  name <- reticulate::py_get_attr(value, "__name__", silent = TRUE)
  text <- if (is.null(value) || inherits(value, "python.builtin.NoneType")) {
    "NULL"
  } else if (inherits(value, c("python.builtin.list", "python.builtin.tuple"))) {
    builtins <- reticulate::import_builtins(convert = FALSE)
    items <- builtins$list(value)
    texts <- vapply(seq_len(length(items)), \(i) value_text(items[[i - 1L]]), "")
    paste0("list(", toString(texts), ")")
  } else if (is_instance(value, "flax_module")) {
    module_text(value)
  } else if (inherits(value, plain_types)) {
    deparse(reticulate::py_to_r(value))[[1]]
  } else if (!is.null(name) && !inherits(name, "python.builtin.NoneType")) {
    reticulate::py_str(name)
  } else {
    sub(" object at 0x[0-9a-f]+", "", reticulate::py_str(value))
  }
  text <- gsub("\\s+", " ", text)
  if (nchar(text) > 60) paste0(substr(text, 1, 57), "...") else text
}

# A module in one line, without functions and dtypes.
module_text <- function(x) {
  if (inherits(x, "kerasflax.LazyModule")) {
    return(format_lazy(x))
  }
  facts <- module_facts(x)
  named <- c(facts$fields[facts$is_short], facts$parts)
  paste0(facts$name, "(", toString(paste(names(named), "=", named, recycle0 = TRUE)), ")")
}

module_lines <- function(x) {
  facts <- module_facts(x)
  c(
    paste0("<", facts$api, " module> ", facts$name),
    titled_lines("fields", facts$fields),
    titled_lines("parts", facts$parts),
    titled_lines("weights", facts$weights),
    titled_lines("methods", facts$methods)
  )
}

titled_lines <- function(title, texts) {
  if (length(texts) > 0) {
    text <- if (is.null(names(texts))) texts else paste(names(texts), "=", texts)
    strwrap(toString(text), 78, initial = paste0(title, ": "), exdent = 2)
  }
}

# A module's text must not fail: any class can have attributes that do.
or_python_text <- function(x, value) {
  tryCatch(value, error = function(condition) reticulate::py_repr(x))
}

print_lines <- function(x, lines) {
  if (reticulate::py_is_null_xptr(x)) {
    lines <- "<Python object of an earlier session>"
  }
  writeLines(lines)
  invisible(x)
}

#' @export
print.flax.linen.module.Module <- function(x, ...) {
  print_lines(x, or_python_text(x, module_lines(x)))
}

#' @export
print.flax.nnx.module.Module <- function(x, ...) {
  print_lines(x, or_python_text(x, module_lines(x)))
}

#' @exportS3Method utils::str flax.linen.module.Module
str.flax.linen.module.Module <- function(object, ...) {
  cat("", or_python_text(object, module_text(object)), "\n")
}

#' @exportS3Method utils::str flax.nnx.module.Module
str.flax.nnx.module.Module <- function(object, ...) {
  cat("", or_python_text(object, module_text(object)), "\n")
}

# Constructors ------------------------------------------------------------------------------------

constructor_text <- function(x) {
  definition <- environment(x)$definition
  fields <- vapply(
    definition$fields,
    \(field) if (field$is_required) field$type else format_default(field$default$value),
    ""
  )
  paste0(definition$name, "(", toString(sprintf("%s = %s", names(fields), fields)), ")")
}

#' @exportS3Method utils::str flax_module
str.flax_module <- function(object, ...) {
  methods <- sub("^__call__$", "call", names(environment(object)$definition$methods))
  cat(" <flax_module> ", constructor_text(object), ", methods: ", toString(methods), "\n", sep = "")
}

#' @export
`$.flax_module` <- function(x, name) {
  definition <- environment(x)$definition
  if (name == "call") {
    definition$methods[["__call__"]]
  } else if (name %in% names(definition$fields)) {
    definition$fields[[name]]$default$value
  } else {
    definition$methods[[name]]
  }
}

#' @exportS3Method utils::.DollarNames flax_module
.DollarNames.flax_module <- function(x, pattern = "") {
  definition <- environment(x)$definition
  names <- c(names(definition$fields), sub("^__call__$", "call", names(definition$methods)))
  grep(pattern, names, value = TRUE)
}

# Classes from Python and from `%py_class%` -------------------------------------------------------

# reticulate gives a class of Linen modules no R class of its own, so these methods see every class
# of Python. They leave all others to reticulate.

is_module_class <- function(x) {
  !reticulate::py_is_null_xptr(x) &&
    (is_nnx_class(x) ||
      grepl(
        "'flax.linen.module.Module'",
        reticulate::py_str(reticulate::py_get_attr(x, "__mro__")),
        fixed = TRUE
      ))
}

is_nnx_class <- function(x) inherits(x, "flax.nnx.module.ModuleMeta")

# The arguments of a class, each with its default, or with its type if it has none.
class_arguments <- function(x) {
  init <- reticulate::py_get_attr(x, "__init__")
  if (is_nnx_class(x) && !inherits(init, "python.builtin.function")) {
    return(character())
  }
  inspect <- reticulate::import("inspect", convert = FALSE)
  # The signature of an NNX class is that of its metaclass.
  signature <- inspect$signature(if (is_nnx_class(x)) init else x)
  parameters <- reticulate::iterate(signature$parameters$values(), simplify = FALSE)
  names <- vapply(parameters, \(each) reticulate::py_to_r(each$name), "")
  is_own <- if (is_nnx_class(x)) seq_along(names) > 1 else !names %in% c("parent", "name")
  parameters <- rlang::set_names(parameters, names)[is_own]
  is_any <- vapply(parameters, \(each) grepl("VAR_", reticulate::py_str(each$kind)), NA)
  texts <- vapply(parameters[!is_any], \(each) {
    if (is_empty(each$default)) type_text(each$annotation) else value_text(each$default)
  }, "")
  c(texts, if (any(is_any)) c(... = ""))
}

is_empty <- function(x) identical(reticulate::py_repr(x), "<class 'inspect._empty'>")

# The name of a type in R's words, as in `flax_field()`.
type_text <- function(type) {
  if (is_empty(type)) {
    return("any")
  }
  name <- reticulate::py_get_attr(type, "__name__", silent = TRUE)
  is_named <- !is.null(name) && !inherits(name, "python.builtin.NoneType")
  name <- sub("^([A-Za-z_]+[.])+", "", reticulate::py_str(if (is_named) name else type))
  switch(
    name,
    int = "integer",
    float = "double",
    bool = "logical",
    str = "character",
    Any = "any",
    if (nchar(name) > 60) paste0(substr(name, 1, 57), "...") else name
  )
}

class_facts <- function(x) {
  arguments <- class_arguments(x)
  texts <- paste(names(arguments), "=", arguments, recycle0 = TRUE)
  name <- reticulate::py_to_r(reticulate::py_get_attr(x, "__name__"))
  list(
    title = if (is_nnx_class(x)) "<NNX module class> " else "<Linen module class> ",
    call = paste0(name, "(", toString(sub("^[.]{3} = $", "...", texts)), ")"),
    methods = setdiff(own_methods(x), names(arguments))
  )
}

class_lines <- function(x) {
  facts <- class_facts(x)
  c(
    strwrap(facts$call, 78, initial = facts$title, exdent = 2),
    titled_lines("methods", facts$methods)
  )
}

class_text <- function(x) {
  facts <- class_facts(x)
  methods <- if (length(facts$methods) > 0) paste(", methods:", toString(facts$methods))
  paste0(facts$title, facts$call, methods)
}

#' @export
print.python.builtin.type <- function(x, ...) {
  if (is_module_class(x)) print_lines(x, or_python_text(x, class_lines(x))) else NextMethod()
}

#' @exportS3Method utils::str python.builtin.type
str.python.builtin.type <- function(object, ...) {
  if (is_module_class(object)) {
    cat("", or_python_text(object, class_text(object)), "\n")
  } else {
    NextMethod()
  }
}

# Layers ------------------------------------------------------------------------------------------

layer_lines <- function(x) {
  weights <- x$weights
  trainable <- x$trainable_weights
  count <- function(weights) sum(vapply(weights, \(weight) prod(unlist(weight$shape)), 0))
  module <- module_lines(x$module)
  c(
    paste0("<FlaxLayer> ", x$name),
    if (x$built) {
      paste0(
        "built: ",
        format_count(length(weights), "weight"),
        " with ",
        format_count(count(weights), "parameter"),
        ", ",
        format_number(count(trainable)),
        " trainable"
      )
    } else {
      "not built: the weights are created when the layer gets its input"
    },
    paste0("  ", module)
  )
}

#' @export
print.kerasflax.FlaxLayer <- function(x, ...) {
  print_lines(x, or_python_text(x, layer_lines(x)))
}

#' @export
summary.kerasflax.FlaxLayer <- function(object, ...) {
  print(object)
  if (object$built) {
    cat("\n")
    print(flax_parameters(object))
  }
  invisible(object)
}

#' @exportS3Method utils::str kerasflax.FlaxLayer
str.kerasflax.FlaxLayer <- function(object, ...) {
  text <- or_python_text(
    object,
    paste0(
      "<FlaxLayer> ",
      object$name,
      ": ",
      module_text(object$module),
      if (object$built) paste0(", ", format_count(length(object$weights), "weight"))
    )
  )
  cat("", text, "\n")
}

# Models ------------------------------------------------------------------------------------------

# Keras's summary names the class of each layer, which is FlaxLayer for every module. These lines
# follow it. keras3's methods for `print()` and `summary()` do not look for methods of `format()`.
module_names <- function(model) {
  layers <- Filter(\(layer) is_instance(layer, "flax_layer"), model$layers)
  texts <- vapply(layers, \(layer) paste0(" ", layer$name, ": ", module_text(layer$module)), "")
  if (length(texts) > 0) c(" Flax modules:", paste0(" ", texts))
}

with_module_names <- function(method) {
  force(method)
  function(x, ...) {
    result <- method(x, ...)
    if (!reticulate::py_is_null_xptr(x)) {
      writeLines(tryCatch(module_names(x) %||% character(), error = \(condition) character()))
    }
    invisible(result)
  }
}

# Registered when the package is loaded: in NAMESPACE, R would report at each `library(kerasflax)`
# that the methods replace others.
register_model_methods <- function() {
  class <- "keras.src.models.model.Model"
  for (generic in c("print", "summary")) {
    method <- get0(paste0(generic, ".", class), asNamespace("keras3"), mode = "function")
    if (!is.null(method)) {
      registerS3method(generic, class, with_module_names(method))
    }
  }
}
