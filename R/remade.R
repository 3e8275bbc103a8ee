# Python objects that R creates when a session first uses them. An R object that a package, a file
# or a saved workspace holds reaches later sessions; a Python object does not.

# `make(call)` creates the object. If Python is running, it does so now, so that its errors come
# early.
new_remade <- function(make, call = caller_env()) {
  x <- rlang::env(emptyenv(), make = make, object = NULL)
  if (reticulate::py_available()) {
    remade(x, call)
  }
  x
}

# The object of this session.
remade <- function(x, call = NULL) {
  if (is.null(x$object) || is_from_earlier_session(x$object)) {
    x$object <- x$make(call)
  }
  x$object
}

is_from_earlier_session <- function(x) is_python_object(x) && reticulate::py_is_null_xptr(x)

# A value that may be a Python object, with the place where a later session finds that object again:
# `nn$relu`, or the class `nnx$Linear`.
keep_value <- function(value) {
  list(value = value, place = if (is_python_object(value)) python_place(value))
}

kept_value <- function(kept, name, call = caller_env()) {
  if (!is_from_earlier_session(kept$value)) {
    kept$value
  } else if (!is.null(kept$place)) {
    find_python(kept$place)
  } else {
    abort_kerasflax(
      c(
        "{.arg {name}} is a Python object of an earlier R session, which no longer exists.",
        i = "Run the code that defines it again, or create the object in a method or function."
      ),
      cause = "argument",
      call = call
    )
  }
}

# The module and the name of a Python object. NULL if it is not an attribute of a module.
python_place <- function(object) {
  place <- lapply(c("__module__", "__qualname__"), \(name) {
    reticulate::py_to_r(reticulate::py_get_attr(object, name, silent = TRUE))
  })
  if (!all(vapply(place, rlang::is_string, NA))) {
    return(NULL)
  }
  # Importing or looking up may fail in any way.
  found <- tryCatch(find_python(place), error = function(condition) NULL)
  same <- !is.null(found) && identical(reticulate::py_id(found), reticulate::py_id(object))
  if (same) place
}

find_python <- function(place) {
  parts <- strsplit(place[[2]], ".", fixed = TRUE)[[1]]
  Reduce(\(object, part) do.call(`$`, list(object, part)), parts, reticulate::import(place[[1]]))
}
