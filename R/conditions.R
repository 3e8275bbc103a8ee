# Condition classes: one for each cause, `kerasflax_error_<cause>`, which inherits from
# `kerasflax_error`. The causes are those of the Python core's exceptions
# (inst/python/kerasflax/_errors.py), plus `object` and `tracer`, which only R uses.

# `message` is a cli template: pass foreign text by value only.
abort_kerasflax <- function(message, cause, call = caller_env(), envir = parent.frame()) {
  cli::cli_abort(message, class = error_class(cause), call = call, .envir = envir)
}

error_class <- function(cause) c(paste0("kerasflax_error_", cause), "kerasflax_error")

# Evaluates code that enters Python, and converts a Python exception to an R condition. A condition
# that R code inside a module signaled is signaled again, and an error of the core becomes a
# `kerasflax_error`. Any other exception stays as it is, unless `otherwise` names its cause.
with_r_conditions <- function(expr, otherwise = NULL, call = caller_env()) {
  tryCatch(
    expr,
    python.builtin.BaseException = function(exception) {
      origin <- find_r_condition(exception)
      if (!is.null(origin)) {
        rlang::cnd_signal(as_r_condition(origin))
      }
      is_ours <- is_instance(exception, "error")
      cause <- if (is_ours) exception$cause else otherwise
      if (is.null(cause)) {
        stop(exception)
      }
      problems <- if (is_ours) problems_in(exception) else character()
      what <- if (is_ours) exception$what else reticulate::py_str(exception)
      # Not cli_abort(): the text is not a template.
      rlang::abort(
        c(
          what,
          rlang::set_names(problems, rep("x", length(problems))),
          i = if (is_ours) exception$advice
        ),
        class = error_class(cause),
        problems = problems,
        parent = python_parent(exception),
        call = call
      )
    }
  )
}

# The problems as one text for each path.
problems_in <- function(exception) {
  problems <- exception$problems
  sprintf("%s: %s", names(problems), unlist(problems, use.names = FALSE))
}

# The exception as the parent of an R condition, without its text, which would be printed twice. For
# an error of the core, the parent is the exception that caused it, if there is one: its traceback
# says more than the error.
python_parent <- function(exception) {
  origin <- if (is_instance(exception, "error")) cause_of(exception) else exception
  if (!is.null(origin)) {
    rlang::error_cnd(
      class = "kerasflax_python_exception",
      message = paste0(
        sub("^python[.]builtin[.]", "", class(origin)[[1]]),
        " in Python. `reticulate::py_last_error()` has its traceback."
      ),
      exception = origin
    )
  }
}

# reticulate does not document how a Python exception carries the R condition that caused it. With
# reticulate 1.47.0 (tests/versions.csv), the class of the condition is the attribute `r_class`, and
# its fields are attributes of their own. No upstream issue was found.

# The exception that carries an R condition: `exception` itself, or one of its causes.
find_r_condition <- function(exception) {
  while (!is.null(exception)) {
    if (reticulate::py_has_attr(exception, "r_class")) {
      return(exception)
    }
    exception <- cause_of(exception)
  }
  NULL
}

# The exception that `raise ... from` names as the cause of another, or NULL.
cause_of <- function(exception) {
  reticulate::py_to_r(reticulate::py_get_attr(exception, "__cause__"))
}

# The R condition that the exception carries, with advice added to its message.
as_r_condition <- function(exception) {
  condition <- r_condition_of(exception)
  condition$message <- paste(c(condition$message, advice_on_condition(condition)), collapse = "\n")
  condition
}

# reticulate stores a condition's fields as attributes of the exception.
r_condition_of <- function(exception) {
  fields <- reticulate::py_to_r(reticulate::py_get_attr(exception, "__dict__"))
  fields <- lapply(fields, reticulate::py_to_r)
  # The last name is Keras's mark on the exception: see `raised_as_is()` in `_keras.py`.
  own <- setdiff(names(fields), c("r_class", "__notes__", "_keras_call_info_injected"))
  structure(fields[own], class = fields$r_class)
}

# The advice that the core adds to the text of a Python exception.
r_advice <- function(exception) {
  if (reticulate::py_has_attr(exception, "r_class")) {
    advice_on_condition(r_condition_of(exception))
  } else {
    advice_on_exceptions(exception)
  }
}

# R's error messages do not help with these mistakes. NULL for other errors.
advice_on_condition <- function(condition) {
  advice_on_names(condition) %||% advice_on_tensors(condition)
}

# A method has its arguments, and finds the module's fields in `self`.
advice_on_names <- function(condition) {
  # R's message in the language of the session.
  parts <- strsplit(gettext("object '%s' not found", domain = "R"), "%s", fixed = TRUE)[[1]]
  text <- condition$message
  # A condition can have any message, or none.
  is_this <- rlang::is_string(text) &&
    length(parts) == 2 &&
    startsWith(text, parts[[1]]) &&
    endsWith(text, parts[[2]])
  if (!is_this) {
    return(NULL)
  }
  name <- substr(text, nchar(parts[[1]]) + 1, nchar(text) - nchar(parts[[2]]))
  if (name == "training") {
    "A method gets `training` if it has an argument of this name."
  } else {
    sprintf("If `%s` is a field or part of the module, write `self$%s`.", name, name)
  }
}

advice_on_tensors <- function(condition) {
  if (!inherits(condition, "simpleError") || !rlang::is_call(condition$call)) {
    return(NULL)
  }
  name <- rlang::call_name(condition$call) %||% ""
  instead <- advised(name)
  if (name %in% c("if", "while", "&&", "||")) {
    paste(
      "If the condition is a tensor: inside a module, a tensor has no values yet, so",
      sprintf("`%s` cannot test it.", name),
      "Use `op_where()` to choose by element, or `op_cond()` to choose between computations."
    )
  } else if (identical(condition$call[[1]], quote(`@`)) || grepl("slot \"r\"", condition$message)) {
    "If the object is a tensor: before R 4.3, use `op_subset(x, ...)` instead of `x@r[...]`."
  } else if (!is.null(instead)) {
    sprintf("`%s` is not available for a tensor inside a module. Use %s.", name, instead)
  }
}

# Python's and JAX's messages are the only sign of these mistakes.
advice_on_exceptions <- function(exception) {
  message <- reticulate::py_str(exception)
  if (grepl("Tracer' and 'list'|'list' and '[A-Za-z]*Tracer'", message)) {
    # Python gets a vector of several elements as a list.
    "Convert the R vector first: `op_convert_to_tensor(c(1, 2))`."
  } else if (inherits(exception, no_values_yet)) {
    paste(
      "Inside a module, a tensor has no values yet: R functions that need values cannot use it.",
      "Use operations of keras3 instead, such as `op_sum()`."
    )
  } else if (grepl("^Parameter \"(deterministic|use_running_average)\" must be", message)) {
    name <- sub("^Parameter \"([a-z_]+)\".*", "\\1", message)
    paste0(
      "Pass it where you call the part: `",
      name,
      " = !training`. The method gets `training` if it has an argument of this name."
    )
  } else if (grepl("[JAX RNG]", message, fixed = TRUE)) {
    # Keras advises to create a seed generator, whose state nothing would keep.
    core_words[["instead of SeedGenerator"]]
  } else if (grepl("ncompatible shapes for broadcasting.*[(][0-9]+,[)]", message)) {
    # In R, `x / rowSums(x)` works.
    paste(
      "A vector is combined with the last axis. To combine one value with each row, keep the axis:",
      "`op_sum(x, axis = -1, keepdims = TRUE)`."
    )
  } else if (grepl("^object of type '(int|float)' has no len", message)) {
    # Flax asks for the length of a shape.
    "An argument may need one number for each axis: `c(2, 2)` instead of `2`."
  } else if (grepl("^Input type must be an integer", message)) {
    # By default, inputs are float32.
    "Declare an input of integers, such as tokens: `keras_input(shape, dtype = \"int32\")`."
  }
}

# JAX's errors about values that do not exist while a module is traced.
no_values_yet <- paste0(
  "jax.errors.",
  c("TracerArrayConversionError", "ConcretizationTypeError", "TracerIntegerConversionError")
)
