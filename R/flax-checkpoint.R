#' Read and write variables in standard file formats
#'
#' @description
#' `flax_read()` reads variables from a file that another program or an earlier session wrote.
#' `flax_write()` writes the variables of a layer or model, so that other programs can read them. To
#' create a layer with trained weights, use
#' `layer_flax_module_wrapper(module = module, variables = flax_read("w.safetensors"))`.
#'
#' # Formats
#' The suffix of `file` selects the format:
#'
#' | suffix | format |
#' |---|---|
#' | `.msgpack` | what `flax.serialization` reads and writes |
#' | `.safetensors` | Hugging Face's format, with paths as names; reading requires safetensors |
#' | `.orbax`, or none | a directory with an Orbax checkpoint; requires orbax-checkpoint |
#'
#' safetensors and orbax-checkpoint are Python packages. `flax_read()` also reads the files without
#' a suffix that `flax.training.checkpoints` wrote before Orbax existed.
#'
#' # Reading
#' `flax_read()` reads data only. It never runs code from a file, and it checks every length in the
#' file before it uses it. It needs memory for the arrays alone. An array that an Orbax checkpoint
#' stores in a single piece, as other programs do, temporarily takes twice its size.
#'
#' With `like`, the variables must match those of `like`. Otherwise, a `kerasflax_error_variables`
#' lists every mismatch by path. The file may name them as Flax's users save them: as
#' `module$init()` returns them, in a `TrainState`, by their paths in the module as `nnx$state()`
#' and `nnx$to_pure_dict()` name them, or below other names such as `model`. What `like` does not
#' have, such as an optimizer's state, is left over. With `rename`, weights with other names are
#' mapped to their new paths.
#'
#' If weights are renamed, left over or skipped, a message of class `kerasflax_message_report` lists
#' them. Its fields are `mapped`, `left_over`, `missing` and `skipped`.
#'
#' # Weights from PyTorch
#' Save a model's `state_dict()` with `safetensors.torch.save_file()` in Python. PyTorch stores the
#' kernel of a convolution with the axes (out, in, height, width), and that of a linear layer as
#' (out, in); Flax stores them as (height, width, in, out) and (in, out). Give the names with
#' `rename` and the axes with `transpose`:
#'
#' ```r
#' flax_read("torch.safetensors", like = model,
#'   rename = c("conv[.]weight" = "params/conv/kernel", "fc[.]weight" = "params/fc/kernel"),
#'   transpose = list("**/conv/kernel" = c(3, 4, 2, 1), "**/fc/kernel" = c(2, 1))
#' )
#' ```
#'
#' A square kernel that is not transposed fits as well, but gives wrong results: compare outputs.
#'
#' # Parts
#' `path` and `skip` are patterns of paths, as in [flax_freeze()]. Only variables that `path`
#' matches and `skip` does not are read or written. A pattern that matches nothing is a
#' `kerasflax_error_argument`. The result of reading a part is a part, and
#' `` `flax_variables<-`() `` leaves what it does not name unchanged:
#'
#' - Give a model a new head: read the file with `skip = "**/head/**"`, then assign.
#' - Move a submodule: write it with `path = "**/encoder/**"`, then read it with
#'   `like = other_model, path = "**/backbone/**"`, and assign. A file that holds nothing but the
#'   weights that are needed may have other names above all of them. In all other cases, map the
#'   names: `rename = c("(.*)/encoder/(.*)" = "\\1/backbone/\\2")`.
#'
#' # Writing
#' `flax_write()` writes the file or directory under a temporary name, and renames it when it is
#' complete. Until then, an existing file with that name stays unchanged, even if R is interrupted
#' or killed. Names that a format cannot distinguish are an error before anything is written.
#'
#' R's doubles are written in single precision, which Flax uses for computation. Arrays that contain
#' whole numbers beyond 2^24, or numbers outside the range of single precision, are written in
#' double precision. Random keys are written as their data.
#'
#' @param file The name of the file, or of the directory of an Orbax checkpoint.
#' @param like A layer, a model, or nested named lists of arrays that the variables must match.
#' @param path A character vector of path patterns: only matching variables are read or written.
#'   `NULL` stands for all variables. `flax_read()` compares patterns with the new paths.
#' @param skip A character vector of path patterns: matching variables are not read or written, and
#'   the file need not have them.
#' @param rename How to map paths. Either a named character vector, in which each name is a regular
#'   expression (in Python's syntax) that matches a whole path, and each value is its replacement,
#'   with `\\1` for a group: `c("(.*)[.]weight" = "params/\\1/kernel")`. `NA` drops the weight. Or a
#'   function that takes a path and returns the new path, or `NULL` to drop the weight.
#' @param transpose How to order the axes of weights that other programs store differently. A named
#'   list: each name is a pattern of new paths, each value the axes of the file in their new order,
#'   as in [aperm()]. The first pattern that matches is used. It is applied before the weights are
#'   compared with `like`.
#' @param progress Whether to show progress, if the file takes more than a moment: by default, not
#'   in scripts and documents. For an Orbax checkpoint, `flax_write()` cannot tell how much has been
#'   written, and shows only the name.
#' @param object A layer created by [layer_flax_module_wrapper()] that has been built, a model that
#'   contains such layers, or variables as returned by [flax_variables()] or `flax_read()`.
#' @param metadata A named character vector to store in a `.safetensors` file.
#'
#' @returns `flax_read()` returns a nested named list of NumPy arrays with the dtypes in the file.
#'   Boxes of metadata are removed. Use [as.array()] to convert an array to R. R has no type for
#'   bfloat16: call `$astype("float32")` first. `flax_write()` returns `object`, invisibly.
#'
#' @seealso [flax_variables()] for the same values in memory, [save_model()] for whole models,
#'   `vignette("pytorch-weights")`
#' @examplesIf kerasflax:::runs_examples()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "dense")
#'
#' file <- tempfile(fileext = ".msgpack")
#' flax_write(model, file)
#' variables <- flax_read(file, like = model)
#' as.array(variables$dense$params$kernel)
#' flax_variables(model) <- variables
#'
#' # A part of the model: everything but the bias
#' part <- tempfile(fileext = ".msgpack")
#' flax_write(model, part, path = "**/kernel")
#' flax_variables(model) <- flax_read(part, like = model, skip = "**/bias")
#'
#' # A checkpoint with other names
#' old <- tempfile(fileext = ".msgpack")
#' flax_write(list(weight = matrix(1, 3, 2), offset = c(0, 1)), old)
#' variables <- flax_read(
#'   old,
#'   like = model,
#'   rename = c(weight = "dense/params/kernel", offset = "dense/params/bias")
#' )
#' flax_variables(model) <- variables
#' predict(model, diag(3), verbose = 0)
#' @export
flax_read <- function(
  file,
  like = NULL,
  path = NULL,
  skip = NULL,
  rename = NULL,
  transpose = NULL,
  progress = rlang::is_interactive()
) {
  check_file_path(file, arg = "file")
  check_path_patterns(path, all = "all variables")
  check_path_patterns(skip, arg = "skip", all = "none")
  check_rename(rename)
  check_transpose(transpose)
  check_flag(progress)
  if (!is.null(like) && !is_keras_layer(like)) {
    check_variables(
      like,
      arg = "like",
      expected = "a layer, a model, or a named list of variables",
      advice = "Pass, for example, the layer that the variables are for."
    )
  }
  report <- NULL
  tree <- call_core(
    "read_variables",
    file,
    like = as_variables(like),
    path = as_patterns(path),
    skip = as_patterns(skip),
    rename = as_rename(rename),
    transpose = as_transpose(transpose),
    progress = if (isTRUE(progress)) as_callback(progress_bar("Reading")),
    report = as_callback(function(each) report <<- each),
    .convert = FALSE
  )
  if (!is.null(report) && !(is.null(rename) && report$is_complete)) {
    inform_report(report)
  }
  as_nested_list(tree)
}

#' @rdname flax_read
#' @export
flax_write <- function(
  object,
  file,
  path = NULL,
  skip = NULL,
  metadata = NULL,
  progress = rlang::is_interactive()
) {
  check_file_path(file, arg = "file")
  check_path_patterns(path, all = "all variables")
  check_path_patterns(skip, arg = "skip", all = "none")
  if (!is_keras_layer(object)) {
    check_variables(
      object,
      arg = "object",
      expected = "a layer, a model, or a named list of variables",
      advice = "Pass, for example, the layer whose variables you want to write."
    )
  }
  if (!is.null(metadata)) {
    check_metadata(metadata)
    metadata <- as.list(metadata)
  }
  check_flag(progress)
  if (isTRUE(progress)) {
    # Until the first report, and for an Orbax checkpoint, which is written without reports.
    cli::cli_progress_message(paste("Writing", escape_braces(basename(file))))
  }
  call_core(
    "write_variables",
    as_single(as_variables(object)),
    file,
    path = as_patterns(path),
    skip = as_patterns(skip),
    metadata = metadata,
    progress = if (isTRUE(progress)) as_callback(progress_bar("Writing"))
  )
  invisible(object)
}

# Signals a message that says how the weights of a file were assigned.
inform_report <- function(report) {
  rlang::inform(
    reticulate::py_str(report),
    class = "kerasflax_message_report",
    mapped = vapply(report$mapped, identity, ""),
    left_over = as.character(report$left_over),
    missing = as.character(report$missing),
    skipped = as.character(report$skipped)
  )
}

check_metadata <- function(metadata, call = caller_env()) {
  problem <- if (!is.character(metadata) || !rlang::is_named(metadata) || anyNA(metadata)) {
    "It is {describe(metadata)}."
  } else if (anyDuplicated(names(metadata))) {
    "Two elements have the name \
    {.val {escape_invalid_bytes(names(metadata)[anyDuplicated(names(metadata))])}}."
  }
  if (!is.null(problem)) {
    abort_kerasflax(
      c("{.arg metadata} must be a character vector with unique names.", x = problem),
      cause = "argument",
      call = call
    )
  }
  check_encoding(metadata, "metadata", call = call)
  check_encoding(names(metadata), "names(metadata)", call = call)
}

check_file_path <- function(path, arg = "path", call = caller_env()) {
  if (!rlang::is_string(path) || !nzchar(path)) {
    abort_kerasflax(
      c("{.arg {arg}} must be a string with the name of a file.", x = "It is {describe(path)}."),
      cause = "argument",
      call = call
    )
  }
  check_encoding(path, arg, call = call)
}

check_rename <- function(rename, call = caller_env()) {
  is_vector <- is.character(rename) && rlang::is_named(rename)
  if (!is.null(rename) && !is.function(rename) && !is_vector) {
    abort_kerasflax(
      c(
        "{.arg rename} must be a named character vector, or a function that takes and returns a \
        path.",
        x = "It is {describe(rename)}.",
        i = "Pass, for example, {.code c(\"(.*)[.]weight\" = \"params/\\\\1/kernel\")}."
      ),
      cause = "argument",
      call = call
    )
  }
  if (is_vector) {
    check_encoding(names(rename), "names(rename)", call = call)
    check_encoding(rename, "rename", call = call)
  }
}

# The elements that are not the numbers 1, 2, ... in some order
not_orders <- function(transpose) {
  is_order <- function(axes) {
    is.numeric(axes) && !anyNA(axes) && identical(as.numeric(sort(axes)), 0 + seq_along(axes))
  }
  Filter(Negate(is_order), transpose)
}

check_transpose <- function(transpose, call = caller_env()) {
  problem <- if (is.null(transpose)) {
    return(invisible())
  } else if (!is.list(transpose) || !rlang::is_named(transpose)) {
    "It is {describe(transpose)}."
  } else if (anyDuplicated(names(transpose))) {
    "Two elements have the name \
    {.val {escape_invalid_bytes(names(transpose)[anyDuplicated(names(transpose))])}}."
  } else if (length(not_orders(transpose)) > 0) {
    "{.val {escape_invalid_bytes(names(not_orders(transpose))[[1]])}} is \
    {describe(not_orders(transpose)[[1]])}, not the numbers 1, 2, ... in any order."
  }
  if (!is.null(problem)) {
    abort_kerasflax(
      c(
        "{.arg transpose} must be a named list with the order of axes for each pattern of paths.",
        x = problem,
        i = "Pass, for example, {.code list(\"**/kernel\" = c(3, 4, 2, 1))}."
      ),
      cause = "argument",
      call = call
    )
  }
  check_encoding(names(transpose), "names(transpose)", call = call)
}

# Python counts axes from 0.
as_transpose <- function(transpose) {
  if (!is.null(transpose)) {
    reticulate::py_dict(
      names(transpose),
      lapply(unname(transpose), \(axes) as.list(as.integer(axes) - 1L))
    )
  }
}

as_rename <- function(rename, call = caller_env()) {
  if (is.function(rename)) {
    as_callback(function(path) {
      new <- rename(path)
      if (is.character(new)) {
        check_encoding(new, "rename(path)", "Return a path in valid UTF-8.", call = call)
      }
      if (!identical(is.na(new), TRUE)) new
    })
  } else if (!is.null(rename)) {
    reticulate::py_dict(names(rename), lapply(unname(rename), \(path) if (!is.na(path)) path))
  }
}

# An R function that Python calls with R values.
as_callback <- function(f) reticulate::r_to_py(f, convert = TRUE)

progress_bar <- function(title, env = parent.frame()) {
  force(title)
  force(env)
  bar <- NULL
  function(done, total) {
    bar <<- bar %||%
      cli::cli_progress_bar(title, total = total, format_done = NULL, .envir = env)
    cli::cli_progress_update(set = done, id = bar, .envir = env)
  }
}

# Python's dicts and lists as R lists. Arrays stay in Python: R would convert them to doubles.
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

# Python strings as R strings. A string in R cannot contain a zero byte.
names_in_r <- function(names) {
  tryCatch(
    vapply(names, reticulate::py_str, ""),
    error = function(cnd) {
      abort_kerasflax(
        c(
          "A name in the file contains a zero byte, which R strings cannot represent.",
          i = "Rename the weight in Python."
        ),
        cause = "file"
      )
    }
  )
}

# Converts doubles to single precision, which JAX uses for computation, unless a whole number would
# change or a number would overflow.
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
