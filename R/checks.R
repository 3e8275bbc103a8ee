# Checks of arguments. Each returns its argument invisibly or ends in a `kerasflax_error_<cause>` of the public function.

check_module <- function(module, call = caller_env()) {
  if (is_flax_module(module)) {
    return(invisible(module))
  }
  hint <- if (is_python_class(module)) {
    "Make an instance of it: {.code module = {module$`__name__`}(...)}."
  } else if (inherits(module, "flax_module")) {
    "Call it, with values for its fields: what it returns is one."
  } else if (is_keras_layer(module)) {
    "A Keras layer needs no wrapper: pipe into it, or add it to the model."
  } else if (is.function(module)) {
    "Give the module as {.arg module}, and a function of it as {.arg method}."
  } else {
    "Give an instance, such as {.code module = flax$linen$Dense(10L)}."
  }
  abort_kerasflax(
    c(
      "{.arg module} must be an instance of a Flax module.",
      x = "It is {what_is(module)}.",
      i = hint
    ),
    cause = "module",
    call = call
  )
}

# What a layer can be put behind: NULL, a Python object that Keras may know, an R array, or a list of them.
check_object <- function(object, module_is_missing, call = caller_env()) {
  if (is_flax_module(object)) {
    abort_kerasflax(
      c(
        "{.arg object} must be what the layer is put behind: a Keras tensor, a sequential model, an array.",
        x = "It is {what_is(object)}, and {.arg module} {if (module_is_missing) 'is missing' else 'is given too'}.",
        i = "Name the argument, {.code module = }, to get the layer alone, or swap the two."
      ),
      cause = "object",
      call = call
    )
  }
  problem <- object_problem(object)
  if (!is.null(problem)) {
    abort_kerasflax(
      c(
        "{.arg object} must be a Keras tensor, a sequential model, an array, or a list of tensors or arrays.",
        x = "{problem}.",
        i = "Give the layer what {.code keras_input()} returns, say, or nothing to get the layer alone."
      ),
      cause = "object",
      call = call
    )
  }
  invisible(object)
}

# NULL where a layer may be called on the object, otherwise what is wrong with it (or with an element of it).
object_problem <- function(object, name = "It") {
  if (is.null(object) && name == "It") {
    NULL
  } else if (is_python_object(object)) {
    if (!(is_sequential(object) || is_python_array(object) || is_python_container(object))) {
      paste(name, "is", what_is(object))
    }
  } else if (is.list(object) && !is.object(object)) {
    list_problem(object, name)
  } else if (!(is.numeric(object) || is.logical(object)) || is.object(object)) {
    paste(name, "is", what_is(object))
  } else if (is.null(dim(object))) {
    paste(name, "is a plain vector, without dimensions: give it some with `array()`")
  } else if (has_lost_na(object)) {
    paste(
      name,
      "holds NA, for which",
      typeof(object),
      "tensors have no value: make it double, or replace NA"
    )
  }
}

# Python's integers and truth values have no NA: reticulate makes other numbers of them.
has_lost_na <- function(x) (is.integer(x) || is.logical(x)) && anyNA(x)

list_problem <- function(object, name) {
  if (length(object) == 0) {
    return(paste(name, "is an empty list"))
  }
  names <- names(object)
  if (!is.null(names) && (!all(nzchar(names)) || anyDuplicated(names))) {
    return(paste(name, "is a list of which only some elements have names, or two have the same"))
  }
  labels <- if (is.null(names)) seq_along(object) else names
  for (i in seq_along(object)) {
    problem <- object_problem(object[[i]], paste("Its element", labels[[i]]))
    if (!is.null(problem)) {
      return(problem)
    }
  }
  NULL
}

check_method <- function(method, call = caller_env()) {
  is_other <- is_python_class(method) ||
    is_flax_module(method) ||
    is_keras_layer(method) ||
    inherits(method, "flax_module")
  is_callable <- is.function(method) && !is_other
  if (is.null(method) || is_callable || rlang::is_string(method)) {
    return(invisible(method))
  }
  abort_kerasflax(
    c(
      "{.arg method} must be a method of the module, a method's name, or a function that takes the module first.",
      x = "It is {what_is(method)}."
    ),
    cause = "method",
    call = call
  )
}

# Where R finds something wrong, `fit` tells by an error what is wrong with the rest, so that all of it is listed at once.
check_variables <- function(
  variables,
  arg = "variables",
  fit = function(part) NULL,
  call = caller_env()
) {
  if (is_python_object(variables)) {
    return(invisible(variables))
  }
  if (is_named_list(variables)) {
    problems <- variables_problems(variables)
    if (length(problems) == 0) {
      return(invisible(variables))
    }
    others <- tryCatch(
      {
        fit(without_problems(variables))
        NULL
      },
      kerasflax_error = \(condition) condition$problems
    )
    problems <- c(problems, escape_braces(others))
    abort_kerasflax(
      c(
        "{.arg {arg}} must be a named list of collections of arrays.",
        rlang::set_names(problems, "x")
      ),
      cause = "variables",
      call = call
    )
  }
  abort_kerasflax(
    c(
      "{.arg {arg}} must be a named list of collections, as {.code module$init()} returns it.",
      x = "It is {what_is(variables)}.",
      i = if (rlang::is_string(variables)) {
        "A file is read by {.fn flax_read}."
      } else {
        "Give {.code list(params = list(...))}."
      }
    ),
    cause = "variables",
    call = call
  )
}

check_flax_layer <- function(object, call = caller_env()) {
  if (is_instance(object, "flax_layer")) {
    return(invisible(object))
  }
  abort_kerasflax(
    c(
      "{.arg object} must be a layer made by {.fn layer_flax_module_wrapper}.",
      x = "It is {what_is(object)}.",
      i = "A model's layers are in {.code model$layers}, and by name in {.code get_layer(model, name)}."
    ),
    cause = "object",
    call = call
  )
}

# A Flax layer, or anything of Keras's that may hold one.
check_flax_object <- function(object, call = caller_env()) {
  if (is_keras_layer(object)) {
    return(invisible(object))
  }
  abort_kerasflax(
    c(
      "{.arg object} must be a layer made by {.fn layer_flax_module_wrapper}, or a model that holds one.",
      x = "It is {what_is(object)}."
    ),
    cause = "object",
    call = call
  )
}

check_path_patterns <- function(path, call = caller_env()) {
  if (is.null(path) || is.character(path) && length(path) > 0 && !anyNA(path)) {
    return(invisible(path))
  }
  abort_kerasflax(
    c(
      "{.arg path} must be patterns of paths, or NULL for every trainable weight.",
      x = "It is {what_is(path)}.",
      i = "Give {.code \"**/kernel\"}, say."
    ),
    cause = "argument",
    call = call
  )
}

# What is wrong with nested variables, by path, as cli text.
variables_problems <- function(tree, path = NULL) {
  problem <- if (is_python_object(tree)) {
    NULL
  } else if (is.list(tree) && !is.object(tree)) {
    if (anyDuplicated(names(tree))) {
      paste("has the name", shown_bytes(names(tree)[[anyDuplicated(names(tree))]]), "twice")
    } else if (!is_unicode(names(tree))) {
      wrong <- Filter(Negate(is_unicode), as.list(names(tree)))[[1]]
      paste("has the name", shown_bytes(wrong), "which is not valid UTF-8")
    }
  } else if (is.object(tree) || !(is.numeric(tree) || is.logical(tree) || is.complex(tree))) {
    paste("is", what_is(tree))
  } else if (has_lost_na(tree)) {
    "holds NA, for which only doubles have a value"
  }
  if (!is.null(problem)) {
    return(escape_braces(paste(paste(path, collapse = "/"), problem)))
  }
  if (is_python_object(tree) || !is.list(tree)) {
    return(character())
  }
  labels <- names(tree) %||% seq_along(tree)
  unlist(
    Map(function(child, label) variables_problems(child, c(path, label)), tree, labels),
    use.names = FALSE
  )
}

# The part of nested variables that R has nothing to say against.
without_problems <- function(tree) {
  if (is.list(tree) && !is.object(tree) && !is_python_object(tree) && !anyDuplicated(names(tree))) {
    Filter(Negate(is.null), lapply(tree, without_problems))
  } else if (length(variables_problems(tree)) == 0) {
    tree
  }
}

# Whether Python can take texts: R knows what characters their bytes stand for.
is_unicode <- function(texts) {
  !any(Encoding(as.character(texts)) == "bytes") && all(validEnc(as.character(texts)))
}

# Text of which some bytes may stand for no character, for a message.
shown_bytes <- function(text) iconv(text, "UTF-8", "UTF-8", sub = "byte")

# Foreign text in a cli template.
escape_braces <- function(text) gsub("}", "}}", gsub("{", "{{", text, fixed = TRUE), fixed = TRUE)

# Arguments for the layer itself: all of them named, each once, and of the kinds that reticulate would turn into others.
check_layer_arguments <- function(dots, call = caller_env()) {
  check_dots(dots, call)
  check_layer_argument(dots, "seed", is_seed, "a whole number from 0 to 2^32 - 1", call)
  check_layer_argument(dots, "trainable", rlang::is_bool, "TRUE or FALSE", call)
  check_layer_argument(dots, "name", is_layer_name, "one string, not empty and without \"/\"", call)
  check_layer_argument(
    dots,
    "regularizers",
    is_named_list,
    "a named list by pattern of paths",
    call
  )
  check_layer_argument(dots, "constraints", is_named_list, "a named list by pattern of paths", call)
  invisible(dots)
}

check_layer_argument <- function(dots, name, is_right, expected, call) {
  value <- dots[[name]]
  if (!is.null(value) && !is_python_object(value) && !is_right(value)) {
    abort_kerasflax(
      c("{.arg {name}} must be {expected}.", x = "It is {what_is(value)}."),
      cause = "argument",
      call = call
    )
  }
}

is_seed <- function(x) {
  is.numeric(x) &&
    !is.object(x) &&
    length(x) == 1 &&
    is.finite(x) &&
    x == trunc(x) &&
    x >= 0 &&
    x < 2^32
}

is_layer_name <- function(x) {
  rlang::is_string(x) && nzchar(x) && !is.na(x) && !grepl("/", x, fixed = TRUE)
}

check_dots <- function(dots, call) {
  names <- names(dots) %||% rep("", length(dots))
  if (all(nzchar(names)) && !anyDuplicated(names)) {
    return(invisible(dots))
  }
  abort_kerasflax(
    c(
      "Arguments in {.arg ...} must have names, each its own.",
      x = "There {cli::qty(length(dots))}{?is/are} {length(dots)}, named {.val {names}}.",
      i = "They go to the layer: {.code name = }, {.code trainable = }, {.code dtype = }, {.code seed = }."
    ),
    cause = "argument",
    call = call
  )
}

`%||%` <- rlang::`%||%`

is_python_object <- function(x) inherits(x, "python.builtin.object")

is_python_class <- function(x) inherits(x, "python.builtin.type")

is_keras_layer <- function(x) is_instance(x, "layer")

is_python_array <- function(x) {
  reticulate::py_has_attr(x, "shape") &&
    reticulate::py_has_attr(x, "dtype") &&
    !grepl("^(<U|[|]S|object|string)", reticulate::py_str(x$dtype))
}

is_python_container <- function(x) {
  inherits(x, c("python.builtin.list", "python.builtin.tuple", "python.builtin.dict")) &&
    length(x) > 0
}

is_sequential <- function(x) is_instance(x, "sequential")

# Also how to make one; not Keras's layers, which are NNX modules in Keras's NNX mode.
is_flax_module <- function(x) is_instance(x, "flax_module") && !is_keras_layer(x)

is_named_list <- function(x) {
  is.list(x) && !is.object(x) && rlang::is_named(x) && !anyDuplicated(names(x))
}

# A value in a few words, for "It is ...".
what_is <- function(x) {
  if (missing(x) || is.null(x)) {
    "NULL"
  } else if (is_python_class(x)) {
    paste0("the class `", x$`__name__`, "`, not an instance")
  } else if (is_python_object(x)) {
    paste0("a Python object of class `", sub("^python[.]builtin[.]", "", class(x)[[1]]), "`")
  } else if (inherits(x, "flax_module")) {
    paste0("the constructor of `", attr(x, "name"), "`, not an instance")
  } else if (is.function(x)) {
    "an R function"
  } else if (rlang::is_scalar_atomic(x)) {
    shown <- if (is.character(x)) encodeString(x, quote = "\"") else encodeString(format(x))
    paste("the", if (is.factor(x)) "factor" else typeof(x), shown)
  } else if (is.atomic(x) && !is.object(x)) {
    paste(
      "an R",
      if (is.null(dim(x))) "vector" else class(x)[[1]],
      "of type",
      typeof(x),
      "and length",
      length(x)
    )
  } else {
    paste0("a ", class(x)[[1]], " of length ", length(x))
  }
}
