#' Tabulate the weights of a layer or model
#'
#' @description
#' `flax_parameters()` returns a data frame with one row for each weight: its path, shape, dtype and
#' size, and whether it is trainable. It prints as a tree of modules, with the totals of each
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
#' * `path`: the path of the weight within the layer;
#' * `shape`: a list of integer vectors, which are empty for scalars; `dtype`;
#' * `size`: the number of elements, and `bytes`; both are doubles;
#' * `trainable`;
#' * with `stats = TRUE`, also `mean`, `sd`, `min` and `max`, which are `NaN` for an empty or
#'   complex weight, and `n_nonfinite`, the number of values that are `NaN` or infinite.
#'
#' @seealso [plot.flax_parameters()]
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L)) |>
#'   layer_dense(1)
#'
#' parameters <- flax_parameters(model, stats = TRUE)
#' parameters
#' parameters[parameters$n_nonfinite > 0, ]
#' @export
flax_parameters <- function(object, stats = FALSE) {
  check_parameters_object(object)
  check_layer_argument(
    list(stats = stats),
    "stats",
    rlang::is_bool,
    "TRUE or FALSE",
    rlang::current_env()
  )
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
  numbers <- intersect(c("size", "bytes", "n_nonfinite"), names(reticulate::py_to_r(columns)))
  doubles <- lapply(rlang::set_names(numbers), \(name) {
    as.double(as_double(reticulate::py_get_item(columns, name), "float64"))
  })
  columns <- reticulate::py_to_r(columns)
  columns[numbers] <- doubles
  columns
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
    mean = double(),
    sd = double(),
    min = double(),
    max = double(),
    n_nonfinite = double()
  )
  for (name in names(columns)) {
    columns[[name]] <- as.vector(columns[[name]], typeof(types[[name]]))
  }
  structure(
    columns,
    class = c("flax_parameters", "data.frame"),
    row.names = seq_along(columns$path)
  )
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

# The tree ---------------------------------------------------------------------------------------

# The nodes of the tree, each before its descendants. `name`: its name. `parent`: the parent node,
# or 0 for a layer. `depth`: 1 for a layer. `used`: how many names lead to the node, including the
# layer's. `last`: its last descendant, or the node itself for a weight. `rows`: a list of its rows
# in `x`. A node with a single child is merged with the child.
parameter_tree <- function(x) {
  nodes <- list()
  grow <- function(rows, parts, parent, depth, used, prefix = NULL) {
    heads <- vapply(parts, \(part) part[[1]], "")
    keys <- paste(heads, lengths(parts) == 1)
    groups <- split(seq_along(rows), factor(keys, unique(keys)))
    for (group in groups) {
      name <- paste(c(prefix, heads[[group[[1]]]]), collapse = "/")
      below <- lapply(parts[group], \(part) part[-1])
      is_weight <- length(below[[1]]) == 0
      if (
        !is_weight &&
          length(unique(vapply(below, \(part) paste(part[[1]], length(part) == 1), ""))) == 1
      ) {
        grow(rows[group], below, parent, depth, used + 1, name)
        next
      }
      place <- length(nodes) + 1
      nodes[[place]] <<- list(
        name = name,
        parent = parent,
        depth = depth,
        used = used,
        rows = rows[group]
      )
      if (!is_weight) {
        grow(rows[group], below, place, depth + 1, used + 1)
      }
      nodes[[place]]$last <<- length(nodes)
    }
  }
  # Keras allows several layers with the same name. The second weight with the same path then
  # belongs to the second layer.
  keys <- paste(x$layer, x$path, sep = "\n")
  twin <- unsplit(lapply(split(keys, keys), seq_along), keys)
  layers <- paste(x$layer, twin, sep = "\n")
  grow(seq_len(nrow(x)), Map(c, layers, strsplit(x$path, "/", fixed = TRUE)), 0, 1, 1)
  column <- function(name, type) vapply(nodes, \(node) as.vector(node[[name]], typeof(type)), type)
  list(
    name = sub("\n[0-9]+", "", column("name", "")),
    parent = column("parent", 0),
    depth = column("depth", 0),
    used = column("used", 0),
    last = column("last", 0),
    rows = lapply(nodes, \(node) node$rows)
  )
}

# Selects the nodes to show in `n` lines. Every subtree is shown down to the same depth. The
# remaining lines go to the largest subtrees below that depth, one of each kind, because the blocks
# of a network are often alike. If there are too many nodes, the largest are shown, and the others
# share one line.
select_nodes <- function(tree, x, n) {
  size <- vapply(tree$rows, \(rows) sum(x$size[rows]), 0)
  depth <- sum(cumsum(tabulate(tree$depth)) <= n)
  is_shown <- tree$depth <= depth
  if (depth == 0) {
    is_shown[first_by(-size, which(tree$parent == 0), n - 1)] <- TRUE
    return(is_shown)
  }
  spare <- n - sum(is_shown)
  folded <- which(tree$depth == depth & tree$last > seq_along(tree$name))
  kinds <- vapply(folded, \(node) subtree_kind(x[tree$rows[[node]], ], tree$used[[node]]), "")
  folded <- folded[!duplicated(kinds)]
  for (node in folded[order(-size[folded])]) {
    below <- seq(node + 1, tree$last[[node]])
    children <- below[tree$parent[below] == node]
    if (length(below) <= spare) {
      is_shown[below] <- TRUE
      spare <- spare - length(below)
    } else if (length(children) <= spare) {
      is_shown[children] <- TRUE
      spare <- spare - length(children)
    } else if (spare >= min(10, n / 2)) {
      is_shown[first_by(-size, children, spare - 1)] <- TRUE
      spare <- 0
    }
  }
  is_shown
}

first_by <- function(key, nodes, n) nodes[order(key[nodes])][seq_len(n)]

# Identical for subtrees that differ only in the numbers in their names.
subtree_kind <- function(x, used) {
  parts <- strsplit(gsub("[0-9]+", "#", x$path), "/", fixed = TRUE)
  tails <- vapply(parts, \(part) paste(part[seq_along(part) >= used], collapse = "/"), "")
  paste(tails, shape_text(x$shape), x$dtype, x$trainable, collapse = "\n")
}

tree_lines <- function(x, n) {
  tree <- parameter_tree(x)
  is_shown <- select_nodes(tree, x, n)
  branches <- if (cli::is_utf8_output()) {
    c(fork = "\u251c\u2500 ", end = "\u2514\u2500 ", bar = "\u2502  ")
  } else {
    c(fork = "|- ", end = "\\- ", bar = "|  ")
  }
  lines <- list()
  add <- function(text, rows, is_folded) {
    lines[[length(lines) + 1]] <<- list(text = text, rows = rows, is_folded = is_folded)
  }
  draw <- function(parent, indent) {
    children <- which(tree$parent == parent)
    visible <- children[is_shown[children]]
    hidden <- setdiff(children, visible)
    for (node in visible) {
      is_last <- node == visible[[length(visible)]] && length(hidden) == 0
      branch <- if (parent > 0) branches[[if (is_last) "end" else "fork"]]
      below <- which(tree$parent == node)
      is_open <- any(is_shown[below])
      add(
        paste0(indent, branch, tree$name[[node]]),
        tree$rows[[node]],
        length(below) > 0 && !is_open
      )
      if (is_open) {
        draw(
          node,
          paste0(
            indent,
            if (parent > 0) {
              if (is_last) "   " else branches[["bar"]]
            }
          )
        )
      }
    }
    if (length(hidden) > 0) {
      branch <- if (parent > 0) branches[["end"]]
      add(
        paste0(indent, branch, "(", format_number(length(hidden)), " more)"),
        unlist(tree$rows[hidden]),
        TRUE
      )
    }
  }
  draw(0, "")
  fields <- line_fields(x, lines)
  statistics <- setdiff(names(fields), c("tree", "shape", "dtype", "parameters", "size", "mark"))
  # If the console is too narrow, drop columns instead of breaking lines.
  while (length(statistics) > 0 && sum(field_widths(fields)) > cli::console_width()) {
    fields[utils::tail(statistics, 2)] <- NULL
    statistics <- utils::head(statistics, -2)
  }
  dropped <- if (has_statistics(x)) setdiff(c("mean", "sd", "min", "max"), statistics)
  c(
    join_columns(fields),
    if (!all(is_shown)) {
      weights <- format_number(sum(is_shown & tree$last == seq_along(is_shown)))
      all <- format_count(nrow(x), "weight")
      cli::col_grey(
        paste("#", weights, "of", all, "shown, the others folded. Show all: print(x, n = Inf)")
      )
    },
    if (length(dropped) > 0) {
      cli::col_grey(
        "# No room for ",
        paste(dropped, collapse = ", "),
        ": see the columns, or widen the console"
      )
    }
  )
}

# The columns of the printed tree, as character vectors named by their titles.
line_fields <- function(x, lines) {
  is_weight <- vapply(lines, \(line) length(line$rows) == 1 && !line$is_folded, NA)
  only <- vapply(lines, \(line) line$rows[[1]], 1L)
  sums <- function(column) vapply(lines, \(line) sum(x[[column]][line$rows]), 0)
  weights <- vapply(
    lines,
    \(line) if (line$is_folded) format_count(length(line$rows), "weight") else "",
    ""
  )
  statistics <- lapply(rlang::set_names(c("mean", "sd", "min", "max")), function(column) {
    if (has_statistics(x)) {
      ifelse(is_weight, formatC(x[[column]][only], digits = 3, format = "g"), "")
    }
  })
  bad <- if (has_statistics(x)) sums("n_nonfinite") else 0
  marks <- vapply(lines, \(line) subtree_mark(x[line$rows, ], line$is_folded), "")
  marks <- paste0(
    marks,
    ifelse(bad > 0, paste0(ifelse(nzchar(marks), ", ", ""), format_number(bad), " not finite"), "")
  )
  c(
    list(
      tree = vapply(lines, \(line) line$text, ""),
      shape = ifelse(is_weight, shape_text(x$shape[only]), weights),
      dtype = ifelse(is_weight, x$dtype[only], ""),
      parameters = format_number(sums("size")),
      size = format_bytes(sums("bytes"))
    ),
    Filter(Negate(is.null), statistics),
    list(mark = marks)
  )
}

subtree_mark <- function(x, is_folded) {
  is_fixed <- !x$trainable
  word <- if (all(x$collection[is_fixed] %in% "params")) "frozen" else "non-trainable"
  if (!any(is_fixed)) {
    ""
  } else if (all(is_fixed)) {
    word
  } else if (is_folded) {
    paste("partly", word)
  } else {
    ""
  }
}

field_widths <- function(fields) {
  vapply(
    names(fields),
    \(name) max(nchar(c(if (name != "mark") name, fields[[name]]), "width")) + 2,
    0
  )
}

join_columns <- function(fields) {
  columns <- fields[names(fields) != "mark"]
  columns <- lapply(names(columns), function(name) {
    cells <- c(if (name == "tree") "" else name, columns[[name]])
    # Not format(), which counts a backslash twice.
    space <- strrep(" ", max(nchar(cells, "width")) - nchar(cells, "width"))
    cells <- if (name %in% c("tree", "shape", "dtype")) {
      paste0(cells, space)
    } else {
      paste0(space, cells)
    }
    c(cli::col_grey(cells[[1]]), cells[-1])
  })
  lines <- do.call(paste, c(columns, sep = "  "))
  marks <- c("", fields$mark)
  marks <- ifelse(grepl("finite", marks), cli::col_red(marks), cli::col_grey(marks))
  ifelse(c(FALSE, nzchar(fields$mark)), paste0(lines, "  ", marks), sub(" +$", "", lines))
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
