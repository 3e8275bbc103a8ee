#' Tabulate the weights of a layer or model
#'
#' @description
#' `flax_parameters()` returns a data frame with one row for each weight: its path, shape, dtype and
#' size, and whether it is trainable. The paths are those that the patterns of [flax_freeze()] and
#' of other functions match. It prints as a tree of modules, with the totals of each
#' subtree. The table includes the weights of a model's other layers, so its totals match those of
#' `summary()`, without the optimizer's variables.
#'
#' # Printing
#' Parameters and bytes are counted as in `summary()`, in units of 1024 bytes. A weight of `params`
#' that is not trainable is marked as `frozen`; any other such weight is marked as `non-trainable`.
#'
#' A tree of more than `n` lines is folded. The deepest subtrees show their totals instead of their
#' weights. Of several similar subtrees, the first stays open if there is room. If there are too
#' many modules for `n` lines, the largest are shown, and one line stands for the others. You can
#' select rows as in any data frame; the totals are then those of the selected rows. Without all of
#' the first eight columns, the table prints as a plain data frame.
#'
#' # Several devices
#' With a distribution ([flax_distribute()]), the table has columns for where each weight lives. The
#' header then has the bytes that each device holds, without those of the optimizer. A line that
#' stands for several weights says whether all of them are split, or a part. In a narrow console,
#' columns such as `bytes` and `dtype` are left out.
#'
#' # Statistics
#' The columns for `stats = TRUE` are computed on the device, in float32, from all elements of a
#' weight. `sd` is the standard deviation of the population: it divides by the number of elements,
#' while [stats::sd()] divides by one less. If a weight contains values that are not finite, the
#' other columns follow the rules of arithmetic and are `NaN`, `Inf` or `-Inf`.
#'
#' @param object A layer created by [layer_flax_module_wrapper()], or any Keras model, that has been
#'   built.
#' @param stats Whether to compute statistics of the values.
#' @param x The result of `flax_parameters()`, or rows of it.
#' @param n The maximum number of lines in the printed tree. `Inf` prints the whole tree.
#' @param ... Not used.
#'
#' @returns A data frame of class `flax_parameters`, with the columns
#' * `layer`: the name of the Keras layer;
#' * `collection`: for example `params` or `batch_stats`; `NA` for layers that are not Flax layers;
#' * `path`: the path of the weight, which patterns match: `params/Dense_0/kernel` in the table of a
#'   layer, and `mlp/params/Dense_0/kernel` in that of a model, with the name of the layer first;
#' * `shape`: a list of integer vectors, which are empty for scalars; [write.csv()] and
#'   [as.character()] give texts such as `3x2`; `dtype`;
#' * `size`: the number of elements, and `bytes`; both are doubles;
#' * `trainable`;
#' * with a distribution, also `sharding`: the mesh axis that splits each dimension, as in `-,model`
#'   for a matrix whose columns are split along the axis `model`, or `replicated`, or `one device`;
#'   `devices`: the number of devices that hold the weight or a part of it; and `bytes_per_device`;
#' * with `stats = TRUE`, also `mean`, `sd`, `min` and `max`, which are `NaN` for an empty or
#'   complex weight, and `n_nonfinite`, the number of values that are `NaN` or infinite.
#'
#' @seealso [plot.flax_parameters()], [tidy.flax_parameters()]
#'
#' @examplesIf kerasflax:::runs_examples()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "hidden") |>
#'   layer_dense(1, name = "head")
#'
#' parameters <- flax_parameters(model, stats = TRUE)
#' parameters
#' parameters[parameters$n_nonfinite > 0, ]
#' as.data.frame(parameters)[c("path", "shape", "size", "mean")]
#'
#' # Freeze the weights that a condition selects
#' model |> flax_freeze(subset(parameters, layer == "hidden" & size > 2)$path)
#' flax_parameters(model)
#' @export
flax_parameters <- function(object, stats = FALSE) {
  check_parameters_object(object)
  check_flag(stats)
  check_backend()
  columns <- call_core("parameters", object, stats = stats, .convert = FALSE)
  parameters <- new_parameters(as_columns(columns))
  parameters <- parameters[natural_order(parameters), ]
  rownames(parameters) <- NULL
  parameters
}

# Python's columns as R vectors. Python's integers have no limit, and reticulate would convert them
# to R integers, which end at 2^31.
as_columns <- function(columns) {
  as_double <- reticulate::import("numpy")$asarray
  names <- names(reticulate::py_to_r(columns))
  numbers <- intersect(c("size", "bytes", "n_nonfinite", "devices", "bytes_per_device"), names)
  doubles <- lapply(rlang::set_names(numbers), \(name) {
    as.double(as_double(reticulate::py_get_item(columns, name), "float64"))
  })
  columns <- reticulate::py_to_r(columns)
  columns[numbers] <- doubles
  if (!is.null(columns$sharding)) {
    columns$sharding <- mapply(sharding_text, columns$sharding, columns$devices)
  }
  columns
}

# The mesh axes that split each dimension of a weight, as text.
sharding_text <- function(axes, devices) {
  if (length(axes) == 0) {
    return(if (devices > 1) "replicated" else "one device")
  }
  paste(
    vapply(axes, \(axis) if (is.null(axis)) "-" else paste(unlist(axis), collapse = "+"), ""),
    collapse = ","
  )
}

parameter_columns <- c(
  "layer",
  "collection",
  "path",
  "shape",
  "dtype",
  "size",
  "bytes",
  "trainable"
)
placement_columns <- c("sharding", "devices", "bytes_per_device")
statistic_columns <- c("mean", "sd", "min", "max", "n_nonfinite")

# Printing and plotting use only the columns, because other packages keep only the columns of a data
# frame.
new_parameters <- function(columns) {
  columns$collection <- vapply(columns$collection, \(name) name %||% NA_character_, "")
  columns$shape <- lapply(columns$shape, as.integer)
  types <- list(
    layer = character(),
    collection = character(),
    path = character(),
    shape = list(),
    dtype = character(),
    size = double(),
    bytes = double(),
    trainable = logical(),
    sharding = character(),
    devices = double(),
    bytes_per_device = double(),
    mean = double(),
    sd = double(),
    min = double(),
    max = double(),
    n_nonfinite = double()
  )
  for (name in names(columns)) {
    columns[[name]] <- as.vector(columns[[name]], typeof(types[[name]]))
  }
  columns$shape <- new_shapes(columns$shape)
  structure(
    columns,
    class = c("flax_parameters", "data.frame"),
    row.names = seq_along(columns$path)
  )
}

# The path of each weight without the name of its layer, which the paths in a model's table begin
# with. In a Flax layer, a path begins with the collection, which can have the layer's name.
paths_in_layers <- function(x) {
  collection <- ifelse(is.na(x$collection), "", paste0(x$collection, "/"))
  has_layer <- startsWith(x$path, paste0(x$layer, "/", collection))
  ifelse(has_layer, substring(x$path, nchar(x$layer) + 2), x$path)
}

# JAX sorts names as text, which puts block_10 before block_2. Within a Flax layer, sorts weights by
# the numbers in their names. Layers keep their order.
natural_order <- function(x) {
  padded <- function(digits) paste0(strrep("0", pmax(0, 12 - nchar(digits))), digits)
  key <- ifelse(is.na(x$collection), "", x$path)
  numbers <- gregexpr("[0-9]+", key)
  regmatches(key, numbers) <- lapply(regmatches(key, numbers), padded)
  run <- cumsum(x$layer != c("", utils::head(x$layer, -1)))
  order(run, key, method = "radix")
}

check_parameters_object <- function(object, call = caller_env()) {
  is_model <- is_instance(object, "model")
  if (!is_model && !is_instance(object, "flax_layer")) {
    abort_kerasflax(
      c(
        "{.arg object} must be a layer created by {.fn layer_flax_module_wrapper}, or a Keras \
        model.",
        x = "It is {describe(object)}."
      ),
      cause = "object",
      call = call
    )
  }
  if (is_model && !object$built) {
    abort_kerasflax(
      c(
        "The model {.val {object$name}} has no variables yet.",
        i = "Build it first: specify an input shape, or call it on an input."
      ),
      cause = "not_built",
      call = call
    )
  }
  invisible(object)
}

# Whether a data frame still has the columns of the table, with their types.
has_all_columns <- function(x) {
  all(parameter_columns %in% names(x)) &&
    is.list(x$shape) &&
    is.numeric(x$size) &&
    is.numeric(x$bytes) &&
    is.logical(x$trainable) &&
    !anyNA(x$path) &&
    !anyNA(x$trainable)
}

has_statistics <- function(x) all(statistic_columns %in% names(x))

has_placement <- function(x) {
  all(placement_columns %in% names(x)) && !anyNA(unlist(x[placement_columns]))
}

# Whether each weight is split over devices.
is_split <- function(x) x$bytes_per_device < x$bytes

#' @rdname flax_parameters
#' @export
print.flax_parameters <- function(x, n = 60, ...) {
  if (!has_all_columns(x)) {
    # Not NextMethod(), which would pass `n` on.
    print(structure(x, class = setdiff(class(x), "flax_parameters")), ...)
    return(invisible(x))
  }
  n <- n %||% 60
  is_number <- \(n) {
    rlang::is_scalar_double(n) && !is.na(n) && n >= 1 || rlang::is_scalar_integer(n) && n >= 1L
  }
  check_layer_argument(
    list(n = n),
    "n",
    is_number,
    "a number of lines, at least 1",
    rlang::current_env()
  )
  writeLines(c(header_lines(x), if (nrow(x) > 0) c("", tree_lines(x, n))))
  invisible(x)
}

header_lines <- function(x) {
  total <- function(rows) {
    paste0(format_number(sum(x$size[rows])), " (", format_bytes(sum(x$bytes[rows])), ")")
  }
  bad <- if (has_statistics(x)) x$n_nonfinite else numeric()
  c(
    paste("Parameters:", total(seq_len(nrow(x))), "in", format_count(nrow(x), "weight")),
    paste0("Trainable: ", total(x$trainable), ", non-trainable: ", total(!x$trainable)),
    if (has_placement(x) && any(x$devices > 1)) {
      c(
        paste0("Split: ", total(is_split(x)), ", not split: ", total(!is_split(x))),
        device_line(x)
      )
    },
    if (any(bad > 0)) {
      cli::col_red(
        format_number(sum(bad)),
        " values in ",
        format_count(sum(bad > 0), "weight"),
        " are not finite"
      )
    }
  )
}

# Weights can have been created before a distribution, or under two of them.
device_line <- function(x) {
  counts <- sort(unique(x$devices), decreasing = TRUE)
  texts <- vapply(
    counts,
    \(count) {
      bytes <- format_bytes(sum(x$bytes_per_device[x$devices == count]))
      who <- if (count > 1) paste("each of", format_number(count), "devices:") else "one device:"
      paste(who, bytes)
    },
    ""
  )
  line <- paste(texts, collapse = "; ")
  paste0(toupper(substr(line, 1, 1)), substring(line, 2))
}

# Numbers and names as text ----------------------------------------------------------------------

format_number <- function(number) {
  format(number, big.mark = ",", scientific = FALSE, digits = 15, trim = TRUE)
}

format_count <- function(number, noun) {
  paste0(format_number(number), " ", noun, if (number != 1) "s")
}

# The same format as Keras's summary().
format_bytes <- function(bytes) {
  power <- findInterval(bytes, 1024^(1:5))
  paste(sprintf("%.2f", bytes / 1024^power), c("B", "KB", "MB", "GB", "TB", "PB")[power + 1])
}

shape_text <- function(shape) {
  vapply(shape, \(sizes) if (length(sizes)) paste(sizes, collapse = "x") else "scalar", "")
}

# The column of shapes: a list that write.csv() and format() can convert to text. Packages that know
# lists by their class find "list".
new_shapes <- function(shapes) structure(shapes, class = c("flax_shapes", "list"))

#' @export
as.character.flax_shapes <- function(x, ...) shape_text(x)

#' @export
format.flax_shapes <- function(x, ...) format(shape_text(x), ...)

#' @export
print.flax_shapes <- function(x, ...) {
  print(shape_text(x), quote = FALSE, ...)
  invisible(x)
}

#' @export
`[.flax_shapes` <- function(x, i) new_shapes(unclass(x)[i])
