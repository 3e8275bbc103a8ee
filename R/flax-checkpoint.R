#' Read and write variables in the field's files
#'
#' @description
#' `flax_read()` reads variables that were trained elsewhere, and `flax_write()` writes those of a layer or model for others to
#' read. The suffix of `path` says what the file is:
#'
#' | suffix | is |
#' |---|---|
#' | `.msgpack` | what `flax.serialization` writes and reads |
#' | `.safetensors` | the format of Hugging Face, with paths as names; it needs the Python package safetensors |
#' | `.orbax`, or none | a directory, an Orbax checkpoint; it needs the Python package orbax-checkpoint |
#'
#' `layer_flax_module_wrapper(module = module, variables = flax_read("w.safetensors"))` makes a layer of trained weights.
#'
#' # Reading
#' What is read is data: nothing in a file is run, and no length in it is believed before it has been checked. The memory that
#' it takes is that of the arrays; one that an Orbax checkpoint has in a single piece, as those of other programs do,
#' counts twice meanwhile.
#'
#' With `like` what was read must fit: if not, every place that does not is listed by path in a `kerasflax_error_variables`.
#' With `rename` weights of other names find their places; a message says what was mapped, left over and missing.
#'
#' # Writing
#' A file or folder is written under a temporary name and takes its place when it is whole. Until then an older one of that name
#' stays, even if R is interrupted or killed. Names that a format cannot keep apart are an error before anything is written.
#' Doubles of R are written in single precision, as Flax computes; arrays with whole numbers beyond 2^24, or with numbers beyond
#' that precision's range, in double precision. Of random keys the data are written.
#'
#' @param path The file's name.
#' @param like A layer, a model, or nested named lists of arrays, that what is read must fit.
#' @param rename Where weights go. A named character vector, in which the name is a regular expression (of Python's kind) for a
#'   whole path, and the value its replacement, with `\\1` for a group: `c("(.*)[.]weight" = "params/\\1/kernel")`. `NA` leaves
#'   a weight out. Or a function from a path to a path, or to `NULL`.
#' @param progress Whether to show how far the reading has come.
#' @param object A layer made by [layer_flax_module_wrapper()] that has been built, a model that holds some, or variables as
#'   [flax_variables()] or `flax_read()` return them.
#' @param metadata A named character vector, kept in a `.safetensors` file.
#'
#' @returns `flax_read()`: a nested named list of NumPy arrays, of the dtypes in the file, boxes of metadata opened;
#'   [as.array()] makes R arrays of them, of what R has no numbers for (bfloat16) after `$astype("float32")`.
#'   `flax_write()`: `object`, invisibly.
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "dense")
#'
#' flax_write(model, "model.msgpack")
#' variables <- flax_read("model.msgpack", like = model)
#' flax_variables(model) <- variables
#' @export
flax_read <- function(path, like = NULL, rename = NULL, progress = rlang::is_interactive()) {
  check_file_path(path)
  check_rename(rename)
  check_layer_argument(
    list(progress = progress),
    "progress",
    rlang::is_bool,
    "TRUE or FALSE",
    rlang::current_env()
  )
  if (!is.null(like) && !is_keras_layer(like)) {
    check_variables(like, arg = "like")
  }
  told <- NULL
  tree <- call_core(
    "read_variables",
    path,
    like = as_variables(like),
    rename = as_rename(rename),
    progress = if (isTRUE(progress)) as_callback(progress_bar()),
    report = as_callback(function(report) told <<- reticulate::py_str(report)),
    .convert = FALSE
  )
  if (!is.null(rename) && !is.null(told)) {
    rlang::inform(told)
  }
  as_nested_list(tree)
}

#' @rdname flax_read
#' @export
flax_write <- function(object, path, metadata = NULL) {
  check_file_path(path)
  if (!is_keras_layer(object)) {
    check_variables(object, arg = "object")
  }
  if (!is.null(metadata)) {
    check_metadata(metadata)
    metadata <- as.list(metadata)
  }
  call_core("write_variables", as_single(as_variables(object)), path, metadata = metadata)
  invisible(object)
}

check_metadata <- function(metadata, call = caller_env()) {
  problem <- if (!is.character(metadata) || !rlang::is_named(metadata) || anyNA(metadata)) {
    "It is {what_is(metadata)}."
  } else if (anyDuplicated(names(metadata))) {
    "It has the name {.val {names(metadata)[anyDuplicated(names(metadata))]}} twice."
  } else if (!is_unicode(c(metadata, names(metadata)))) {
    "It has text that is not valid UTF-8."
  }
  if (!is.null(problem)) {
    abort_kerasflax(
      c("{.arg metadata} must be a named character vector.", x = problem),
      cause = "argument",
      call = call
    )
  }
}

check_file_path <- function(path, call = caller_env()) {
  if (!rlang::is_string(path) || !nzchar(path)) {
    abort_kerasflax(
      c("{.arg path} must be the name of a file, one string.", x = "It is {what_is(path)}."),
      cause = "argument",
      call = call
    )
  }
  if (!is_unicode(path)) {
    abort_kerasflax(
      c(
        "{.arg path} must be valid UTF-8, or text in an encoding that R knows.",
        x = "It is {.val {shown_bytes(path)}}.",
        i = "Set its encoding with {.code Encoding(path) <- \"latin1\"}, if that is what it is."
      ),
      cause = "argument",
      call = call
    )
  }
}

check_rename <- function(rename, call = caller_env()) {
  is_vector <- is.character(rename) && rlang::is_named(rename)
  if (!is.null(rename) && !is.function(rename) && !is_vector) {
    abort_kerasflax(
      c(
        "{.arg rename} must be a named character vector, or a function from path to path.",
        x = "It is {what_is(rename)}.",
        i = "Give {.code c(\"(.*)[.]weight\" = \"params/\\\\1/kernel\")}, say."
      ),
      cause = "argument",
      call = call
    )
  }
}

as_rename <- function(rename) {
  if (is.function(rename)) {
    as_callback(function(path) {
      new <- rename(path)
      if (!identical(is.na(new), TRUE)) new
    })
  } else if (!is.null(rename)) {
    reticulate::py_dict(names(rename), lapply(unname(rename), \(path) if (!is.na(path)) path))
  }
}

# A function of R's that is called with R values, whoever calls it.
as_callback <- function(f) reticulate::r_to_py(f, convert = TRUE)

progress_bar <- function(env = parent.frame()) {
  force(env)
  bar <- NULL
  function(done, total) {
    bar <<- bar %||%
      cli::cli_progress_bar("Reading", total = total, format_done = NULL, .envir = env)
    cli::cli_progress_update(set = done, id = bar, .envir = env)
  }
}

# Python's dicts and lists as R's, of arrays that stay Python's: R would make doubles of them.
as_nested_list <- function(tree) {
  if (inherits(tree, "python.builtin.dict")) {
    keys <- reticulate::import_builtins(convert = FALSE)$list(tree$keys())
    names <- names_in_r(lapply(seq_len(length(keys)), \(i) keys[[i - 1L]]))
    children <- lapply(seq_along(names), \(i) {
      as_nested_list(reticulate::py_get_item(tree, keys[[i - 1L]]))
    })
    rlang::set_names(children, names)
  } else if (inherits(tree, c("python.builtin.list", "python.builtin.tuple"))) {
    lapply(seq_len(length(tree)), \(i) as_nested_list(tree[[i - 1L]]))
  } else if (reticulate::py_has_attr(tree, "unbox")) {
    as_nested_list(tree$unbox())
  } else {
    tree
  }
}

# Names from Python as R's text, which ends at a zero byte.
names_in_r <- function(names) {
  tryCatch(
    vapply(names, reticulate::py_str, ""),
    error = function(cnd) {
      abort_kerasflax(
        c(
          "A name in the file has a zero byte in it, which R's text cannot hold.",
          i = "Rename the weight in Python."
        ),
        cause = "file"
      )
    }
  )
}

# Doubles as the single precision in which JAX computes, where that loses neither a whole number nor the size of one.
as_single <- function(tree) {
  if (is_python_object(tree)) {
    tree
  } else if (is.list(tree)) {
    lapply(tree, as_single)
  } else if (is.double(tree) && fits_single(tree)) {
    reticulate::import("numpy", convert = FALSE)$asarray(tree, dtype = "float32")
  } else {
    tree
  }
}

fits_single <- function(x) {
  x <- x[is.finite(x)]
  all(abs(x) <= 2^24 | (x != trunc(x) & abs(x) < 3.4e38))
}
