# Checks of arguments. Each check returns its argument invisibly, or signals a
# `kerasflax_error_<cause>` that names the public function.

check_module <- function(module, call = caller_env()) {
  if (is_from_earlier_session(module)) {
    abort_kerasflax(
      c(
        "{.arg module} is a Python object of an earlier R session, which no longer exists.",
        i = "Run the code that creates the module again."
      ),
      cause = "module",
      call = call
    )
  }
  if (is_flax_module(module)) {
    return(invisible(module))
  }
  hint <- if (is_python_class(module)) {
    "Create an instance: {.code module = {module$`__name__`}(...)}."
  } else if (inherits(module, "flax_module")) {
    "Call the constructor with values for its fields to create an instance."
  } else if (is_keras_layer(module)) {
    "Use a Keras layer without a wrapper: pipe into it, or add it to the model."
  } else if (is.function(module)) {
    "Pass the Flax module as {.arg module} and the function as {.arg method}."
  } else {
    "Pass an instance, such as {.code module = flax$linen$Dense(10L)}."
  }
  abort_kerasflax(
    c(
      "{.arg module} must be an instance of a Flax module.",
      x = "It is {describe(module)}.",
      i = hint
    ),
    cause = "module",
    call = call
  )
}

# A layer composes with NULL, a Python object that Keras may know, an R array, or a list of them.
check_object <- function(object, module_is_missing, call = caller_env()) {
  if (is_flax_module(object)) {
    abort_kerasflax(
      c(
        "{.arg object} must be a Keras tensor, a sequential model, an array, or a list of tensors \
        or arrays.",
        x = "It is {describe(object)}, and {.arg module} is \
        {if (module_is_missing) 'missing' else 'given too'}.",
        i = if (module_is_missing) {
          "Name the argument to get the layer alone: {.code module = }."
        } else {
          "Swap the two arguments."
        }
      ),
      cause = "object",
      call = call
    )
  }
  problem <- object_problem(object)
  if (!is.null(problem)) {
    abort_kerasflax(
      c(
        "{.arg object} must be a Keras tensor, a sequential model, an array, or a list of tensors \
        or arrays.",
        x = "{problem}.",
        i = "Pass what {.code keras_input()} returns. To get the layer alone, pass only \
        {.code module = }."
      ),
      cause = "object",
      call = call
    )
  }
  invisible(object)
}

# The problem with the object or with one of its elements. NULL if a layer can be called on it. An
# optional part of the input may be NULL.
object_problem <- function(object, name = "It") {
  if (is.null(object)) {
    NULL
  } else if (is_python_object(object)) {
    if (!(is_sequential(object) || is_python_array(object) || is_python_container(object))) {
      paste(name, "is", describe(object))
    }
  } else if (is.list(object) && !is.object(object)) {
    list_problem(object, name)
  } else if (is.data.frame(object)) {
    paste0(name, " is a data frame; convert it with `as.matrix()`, or a column with `as.array()`")
  } else if (!(is.numeric(object) || is.logical(object)) || is.object(object)) {
    paste(name, "is", describe(object))
  } else if (is.null(dim(object))) {
    paste(name, "is a vector without dimensions; add them with `array()`")
  } else if (has_lost_na(object)) {
    paste0(
      name,
      " contains NA, which ",
      typeof(object),
      " tensors cannot represent; convert it to double, or replace NA"
    )
  }
}

# Python's integers and truth values have no NA; reticulate turns it into an ordinary value.
has_lost_na <- function(x) (is.integer(x) || is.logical(x)) && anyNA(x)

list_problem <- function(object, name) {
  if (length(object) == 0) {
    return(paste(name, "is an empty list"))
  }
  if (all(vapply(object, is.null, NA))) {
    return(paste(name, "is a list of NULL"))
  }
  names <- names(object)
  if (!is_unicode(names)) {
    return(paste(name, "is a list with the name", invalid_text(names)[[1]], "(not valid UTF-8)"))
  }
  if (!is.null(names) && (!all(nzchar(names)) || anyDuplicated(names))) {
    return(paste(name, "is a list with missing or duplicate names"))
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
  if (rlang::is_string(method)) {
    check_encoding(method, "method", cause = "method", call = call)
  }
  if (is.null(method) || is_callable || rlang::is_string(method)) {
    return(invisible(method))
  }
  abort_kerasflax(
    c(
      "{.arg method} must be a method of the module, the name of one, or a function whose first \
      argument is the module.",
      x = "It is {describe(method)}.",
      i = "Pass, for example, {.code method = \"encode\"}."
    ),
    cause = "method",
    call = call
  )
}

# If R finds problems, `fit` reports what the module finds wrong with the rest as an error, so that
# one message lists all problems. `expected` and `advice` are cli templates.
check_variables <- function(
  variables,
  arg = "variables",
  expected = "a named list of collections",
  advice = "Pass, for example, {.code list(params = list(...))}.",
  fit = function(part) NULL,
  call = caller_env()
) {
  if (is_python_object(variables) && !is_keras_layer(variables)) {
    return(invisible(variables))
  }
  if (is_named_list(variables)) {
    problems <- variables_problems(variables)
    if (length(problems) == 0) {
      return(invisible(variables))
    }
    other_problems <- tryCatch({
      fit(drop_problems(variables))
      NULL
    }, kerasflax_error = \(condition) condition$problems)
    problems <- c(problems, escape_braces(other_problems))
    abort_kerasflax(
      c(
        "{.arg {arg}} must contain only arrays, in named lists.",
        rlang::set_names(problems, "x")
      ),
      cause = "variables",
      call = call
    )
  }
  abort_kerasflax(
    c(
      paste0("{.arg {arg}} must be ", expected, "."),
      x = "It is {describe(variables)}.",
      i = if (rlang::is_string(variables)) {
        "Read a file with {.fn flax_read}."
      } else if (is_keras_layer(variables)) {
        "Pass its variables: {.code flax_variables(layer)}."
      } else {
        advice
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
      "{.arg object} must be a layer created by {.fn layer_flax_module_wrapper}.",
      x = "It is {describe(object)}.",
      i = "Get a layer of a model from {.code model$layers}, or by name with \
      {.code get_layer(model, name)}."
    ),
    cause = "object",
    call = call
  )
}

# Accepts a Flax layer, or any Keras object that may contain one.
check_flax_object <- function(object, call = caller_env()) {
  if (is_keras_layer(object)) {
    return(invisible(object))
  }
  abort_kerasflax(
    c(
      "{.arg object} must be a layer created by {.fn layer_flax_module_wrapper}, or a model that \
      contains one.",
      x = "It is {describe(object)}."
    ),
    cause = "object",
    call = call
  )
}

# `all` says what NULL stands for.
check_path_patterns <- function(
  path,
  arg = "path",
  all = "every trainable weight",
  call = caller_env()
) {
  if (is.null(path) || is.character(path) && length(path) > 0 && !anyNA(path)) {
    return(check_encoding(path, arg, call = call))
  }
  abort_kerasflax(
    c(
      "{.arg {arg}} must be a character vector of path patterns, or NULL for {all}.",
      x = "It is {describe(path)}.",
      i = "Pass, for example, {.code \"**/kernel\"}."
    ),
    cause = "argument",
    call = call
  )
}

# The problems in nested variables, one for each path, as cli text.
variables_problems <- function(tree, path = NULL) {
  problem <- if (is_python_object(tree)) {
    NULL
  } else if (is.list(tree) && !is.object(tree)) {
    if (anyDuplicated(names(tree))) {
      duplicate <- names(tree)[[anyDuplicated(names(tree))]]
      paste("the name", escape_invalid_bytes(duplicate), "occurs twice")
    } else if (!is_unicode(names(tree))) {
      paste("the name", invalid_text(names(tree))[[1]], "is not valid UTF-8")
    }
  } else if (is.object(tree) || !(is.numeric(tree) || is.logical(tree) || is.complex(tree))) {
    paste("expected an array, got", describe(tree))
  } else if (has_lost_na(tree)) {
    "contains NA, which only doubles can represent"
  }
  if (!is.null(problem)) {
    place <- if (is.null(path)) "top level" else paste(path, collapse = "/")
    return(escape_braces(paste0(place, ": ", problem)))
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

# The part of nested variables in which R finds no problem.
drop_problems <- function(tree) {
  if (is.list(tree) && !is.object(tree) && !is_python_object(tree) && !anyDuplicated(names(tree))) {
    Filter(Negate(is.null), lapply(tree, drop_problems))
  } else if (length(variables_problems(tree)) == 0) {
    tree
  }
}

# Python accepts only text whose characters R knows. `arg` is R code that gets the text, and that
# the user can assign to.
check_encoding <- function(
  text,
  arg,
  advice = "Declare the encoding, for example with {.code Encoding({arg}) <- \"latin1\"}.",
  cause = "argument",
  call = caller_env()
) {
  if (is_unicode(text)) {
    return(invisible(text))
  }
  abort_kerasflax(
    c(
      "{.arg {arg}} must be valid UTF-8, or text in an encoding that R knows.",
      x = "Got {.val {invalid_text(text)}}.",
      i = advice
    ),
    cause = cause,
    call = call
  )
}

is_unicode <- function(text) all(has_known_characters(text))

# "bytes" is the encoding of text whose encoding has been lost.
has_known_characters <- function(text) {
  text <- as.character(text)
  Encoding(text) != "bytes" & validEnc(text)
}

# The texts that Python cannot accept, in a form that a message can show.
invalid_text <- function(text) escape_invalid_bytes(text[!has_known_characters(text)])

escape_invalid_bytes <- function(text) iconv(text, "UTF-8", "UTF-8", sub = "byte")

# Escapes foreign text that becomes part of a cli template.
escape_braces <- function(text) gsub("}", "}}", gsub("{", "{{", text, fixed = TRUE), fixed = TRUE)

# Arguments for the layer itself need unique names, and a type that survives reticulate.
check_layer_arguments <- function(dots, call = caller_env()) {
  check_dots(dots, call)
  check_layer_argument(dots, "seed", is_seed, "a whole number from 0 to 2^32 - 1", call)
  check_layer_argument(dots, "trainable", rlang::is_bool, "TRUE or FALSE", call)
  if (is.character(dots$name)) {
    check_encoding(dots$name, "name", call = call)
  }
  check_layer_argument(dots, "name", is_layer_name, "a non-empty string without \"/\"", call)
  by_pattern <- "a named list whose names are path patterns"
  for (name in c("regularizers", "constraints")) {
    check_layer_argument(dots, name, is_named_list, by_pattern, call)
    if (!is_python_object(dots[[name]])) {
      check_encoding(names(dots[[name]]), sprintf("names(%s)", name), call = call)
    }
  }
  invisible(dots)
}

check_layer_argument <- function(dots, name, is_valid, expected, call) {
  value <- dots[[name]]
  if (!is.null(value) && !is_python_object(value) && !is_valid(value)) {
    abort_kerasflax(
      c("{.arg {name}} must be {expected}.", x = "It is {describe(value)}."),
      cause = "argument",
      call = call
    )
  }
}

check_flag <- function(x, name = rlang::caller_arg(x), call = caller_env()) {
  check_layer_argument(rlang::set_names(list(x), name), name, rlang::is_bool, "TRUE or FALSE", call)
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
  unnamed <- sum(!nzchar(names))
  twice <- unique(names[nzchar(names) & duplicated(names)])
  abort_kerasflax(
    c(
      "Arguments in {.arg ...} must have unique names.",
      x = if (unnamed > 0) "{unnamed} argument{?s} {?has/have} no name.",
      x = if (length(twice) > 0) "{.val {twice}} occur{?s/} twice.",
      i = "Name each argument of the layer: {.code name = }, {.code trainable = }, \
      {.code dtype = }, {.code seed = }."
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

# TRUE for lazy modules too. FALSE for Keras layers, which are NNX modules in Keras's NNX mode.
is_flax_module <- function(x) {
  inherits(x, "flax_lazy") || is_instance(x, "flax_module") && !is_keras_layer(x)
}

is_keras_tensor <- function(x) is_instance(x, "keras_tensor")

is_named_list <- function(x) {
  is.list(x) && !is.object(x) && rlang::is_named(x) && !anyDuplicated(names(x))
}

# Describes a value in a few words, for "It is ...".
describe <- function(x) {
  if (missing(x) || is.null(x)) {
    "NULL"
  } else if (is_python_class(x)) {
    paste0("the class `", x$`__name__`, "`, not an instance")
  } else if (is_python_object(x)) {
    paste0("a Python object of class `", sub("^python[.]builtin[.]", "", class(x)[[1]]), "`")
  } else if (inherits(x, "flax_lazy")) {
    "a module that `flax_lazy()` describes"
  } else if (inherits(x, "flax_module")) {
    paste0("the constructor of `", environment(x)$definition$name, "`, not an instance")
  } else if (is.function(x)) {
    "an R function"
  } else if (rlang::is_scalar_atomic(x)) {
    text <- if (is.character(x)) encodeString(x, quote = "\"") else encodeString(format(x))
    paste("the", describe_type(x), text)
  } else if (is.atomic(x) && !is.object(x)) {
    article <- if (is.integer(x)) "an" else "a"
    shape <- if (is.null(dim(x))) "vector" else class(x)[[1]]
    paste(article, typeof(x), shape, "of length", length(x))
  } else {
    paste0("a ", class(x)[[1]], " of length ", length(x))
  }
}

# A Python value in the words of `describe()`, for the core's messages.
r_shown <- function(value) describe(reticulate::py_to_r(value))

describe_type <- function(x) {
  if (is.factor(x)) {
    "factor"
  } else {
    switch(typeof(x), character = "string", double = "number", logical = "logical value", typeof(x))
  }
}
