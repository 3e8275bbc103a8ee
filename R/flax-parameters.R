#' A table of the weights of a layer or model
#'
#' @description
#' `flax_parameters()` returns a data frame with one row per weight: where it is, what shape and dtype it has, how large it is,
#' and whether it is trained. Printed, it is the tree of the modules with the totals of every subtree. Weights
#' of a model's other layers are rows as well, so that the totals are those of `summary(model)`, without its optimizer's.
#'
#' # Printing
#' Parameters are counted and sized as `summary()` does it, in units of 1024 bytes. A weight of `params` that is not trained is
#' marked as `frozen`, any other as `non-trainable`. A tree of more than `n` lines is folded: first the deepest subtrees, which
#' show their totals in place of their weights, and of several alike the first stays open where there is room; of modules too
#' many for `n` lines the largest are shown, and the others in one line. Rows can be chosen as of any data frame, and the
#' totals are those of the chosen ones. Without all of the first eight columns it prints as a plain data frame.
#'
#' # Values
#' The columns of `stats = TRUE` are computed on the device, in float32, over every element of a weight. `sd` is the standard
#' deviation of the population, which divides by the number of elements and not, as [stats::sd()] does, by one less. Where a
#' weight has values that are not finite, the other columns follow the rules of arithmetic and are `NaN`, `Inf` or `-Inf`.
#'
#' @param object A layer made by [layer_flax_module_wrapper()], or any Keras model, that has been built.
#' @param stats Whether to compute what the values are like.
#' @param x What `flax_parameters()` returns, or rows of it.
#' @param n The number of lines that the printed tree may have. `Inf`: all of it.
#' @param ... Not used.
#'
#' @returns A data frame of class `flax_parameters`, with the columns
#' * `layer`, the name of the Keras layer;
#' * `collection`, such as `params` and `batch_stats`; `NA` for layers that are not Flax's;
#' * `path`, the weight's path within the layer;
#' * `shape`, a list of integer vectors, empty ones for scalars; `dtype`;
#' * `size`, in elements, and `bytes`, both doubles;
#' * `trainable`;
#' * with `stats = TRUE` also `mean`, `sd`, `min`, `max`, which an empty or complex weight has not (`NaN`), and `n_nonfinite`,
#'   the number of values that are `NaN` or infinite.
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

# Python's columns as R's. Its integers have no end, and reticulate makes R's of them, which end at 2^31.
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

# All that printing and plotting need is in the columns, which are what other packages keep of a data frame.
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

# JAX sorts names as text: of a Flax layer's weights those in block_2 come before those in block_10. Layers stay in their order.
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
        "{.arg object} must be a layer made by {.fn layer_flax_module_wrapper}, or a Keras model.",
        x = "It is {what_is(object)}."
      ),
      cause = "object",
      call = call
    )
  }
  if (is_model && !object$built) {
    abort_kerasflax(
      c(
        "The model {.val {object$name}} has no variables yet.",
        i = "Build it first: give it an input shape, or call it on an input."
      ),
      cause = "not_built",
      call = call
    )
  }
  invisible(object)
}

# Whether a data frame still has what the table had.
is_whole <- function(x) {
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
  if (!is_whole(x)) {
    # Not NextMethod(), which would hand `n` on.
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
    paste0(with_commas(sum(x$size[rows])), " (", as_readable(sum(x$bytes[rows])), ")")
  }
  bad <- if (has_statistics(x)) x$n_nonfinite else numeric()
  c(
    paste("Parameters:", total(seq_len(nrow(x))), "in", counted(nrow(x), "weight")),
    paste0("Trainable: ", total(x$trainable), ", non-trainable: ", total(!x$trainable)),
    if (any(bad > 0)) {
      cli::col_red(
        with_commas(sum(bad)),
        " values in ",
        counted(sum(bad > 0), "weight"),
        " are not finite"
      )
    }
  )
}

# The tree ------------------------------------------------------------------------------------------------------------------

# The nodes, each before those below it: `name`; `parent`, 0 for layers; `depth`, 1 for layers; `used`, the number of the names
# of a path, the layer's included, down to it; `last`, the last node below it, for a weight itself; and `rows`, a list of the
# rows of `x`. What has a single node below it is one node with that.
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
  # Keras lets layers have one name: the second weight of a path in such layers is the second layer's.
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

# Which nodes are shown in `n` lines. Every subtree stays whole down to one depth, and the lines that are left go to the
# largest subtrees below it, to one of each kind: the blocks of a network are often alike. Of nodes too many for the lines
# the largest are shown, and the others share one line.
shown_nodes <- function(tree, x, n) {
  size <- vapply(tree$rows, \(rows) sum(x$size[rows]), 0)
  depth <- sum(cumsum(tabulate(tree$depth)) <= n)
  shown <- tree$depth <= depth
  if (depth == 0) {
    shown[first_by(-size, which(tree$parent == 0), n - 1)] <- TRUE
    return(shown)
  }
  spare <- n - sum(shown)
  folded <- which(tree$depth == depth & tree$last > seq_along(tree$name))
  kinds <- vapply(folded, \(node) kind_of(x[tree$rows[[node]], ], tree$used[[node]]), "")
  folded <- folded[!duplicated(kinds)]
  for (node in folded[order(-size[folded])]) {
    below <- seq(node + 1, tree$last[[node]])
    children <- below[tree$parent[below] == node]
    if (length(below) <= spare) {
      shown[below] <- TRUE
      spare <- spare - length(below)
    } else if (length(children) <= spare) {
      shown[children] <- TRUE
      spare <- spare - length(children)
    } else if (spare >= min(10, n / 2)) {
      shown[first_by(-size, children, spare - 1)] <- TRUE
      spare <- 0
    }
  }
  shown
}

first_by <- function(key, nodes, n) nodes[order(key[nodes])][seq_len(n)]

# Equal for subtrees that differ in the numbers of names alone.
kind_of <- function(x, used) {
  parts <- strsplit(gsub("[0-9]+", "#", x$path), "/", fixed = TRUE)
  tails <- vapply(parts, \(part) paste(part[seq_along(part) >= used], collapse = "/"), "")
  paste(tails, shape_text(x$shape), x$dtype, x$trainable, collapse = "\n")
}

tree_lines <- function(x, n) {
  tree <- parameter_tree(x)
  shown <- shown_nodes(tree, x, n)
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
    visible <- children[shown[children]]
    hidden <- setdiff(children, visible)
    for (node in visible) {
      is_last <- node == visible[[length(visible)]] && length(hidden) == 0
      branch <- if (parent > 0) branches[[if (is_last) "end" else "fork"]]
      below <- which(tree$parent == node)
      is_open <- any(shown[below])
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
        paste0(indent, branch, "(", with_commas(length(hidden)), " more)"),
        unlist(tree$rows[hidden]),
        TRUE
      )
    }
  }
  draw(0, "")
  fields <- line_fields(x, lines)
  statistics <- setdiff(names(fields), c("tree", "shape", "dtype", "parameters", "size", "mark"))
  # A console that is too narrow gets fewer columns, not broken lines.
  while (length(statistics) > 0 && sum(field_widths(fields)) > cli::console_width()) {
    fields[utils::tail(statistics, 2)] <- NULL
    statistics <- utils::head(statistics, -2)
  }
  left_out <- if (has_statistics(x)) setdiff(c("mean", "sd", "min", "max"), statistics)
  c(
    joined(fields),
    if (!all(shown)) {
      weights <- with_commas(sum(shown & tree$last == seq_along(shown)))
      all <- counted(nrow(x), "weight")
      cli::col_grey("# ", weights, " of ", all, " shown, the others folded. All: print(x, n = Inf)")
    },
    if (length(left_out) > 0) {
      cli::col_grey(
        "# No room for ",
        paste(left_out, collapse = ", "),
        ": see the columns, or widen the console"
      )
    }
  )
}

# The columns of the printed tree as character vectors, named by their titles.
line_fields <- function(x, lines) {
  is_weight <- vapply(lines, \(line) length(line$rows) == 1 && !line$is_folded, NA)
  only <- vapply(lines, \(line) line$rows[[1]], 1L)
  sums <- function(column) vapply(lines, \(line) sum(x[[column]][line$rows]), 0)
  weights <- vapply(
    lines,
    \(line) if (line$is_folded) counted(length(line$rows), "weight") else "",
    ""
  )
  statistics <- lapply(rlang::set_names(c("mean", "sd", "min", "max")), function(column) {
    if (has_statistics(x)) {
      ifelse(is_weight, formatC(x[[column]][only], digits = 3, format = "g"), "")
    }
  })
  bad <- if (has_statistics(x)) sums("n_nonfinite") else 0
  marks <- vapply(lines, \(line) mark_of(x[line$rows, ], line$is_folded), "")
  marks <- paste0(
    marks,
    ifelse(bad > 0, paste0(ifelse(nzchar(marks), ", ", ""), with_commas(bad), " not finite"), "")
  )
  c(
    list(
      tree = vapply(lines, \(line) line$text, ""),
      shape = ifelse(is_weight, shape_text(x$shape[only]), weights),
      dtype = ifelse(is_weight, x$dtype[only], ""),
      parameters = with_commas(sums("size")),
      size = as_readable(sums("bytes"))
    ),
    Filter(Negate(is.null), statistics),
    list(mark = marks)
  )
}

mark_of <- function(x, is_folded) {
  still <- !x$trainable
  word <- if (all(x$collection[still] %in% "params")) "frozen" else "non-trainable"
  if (!any(still)) {
    ""
  } else if (all(still)) {
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

joined <- function(fields) {
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

# Numbers and names as text ---------------------------------------------------------------------------------------------------

with_commas <- function(number) {
  format(number, big.mark = ",", scientific = FALSE, digits = 15, trim = TRUE)
}

counted <- function(number, noun) paste0(with_commas(number), " ", noun, if (number != 1) "s")

# As Keras's summary() has it.
as_readable <- function(bytes) {
  power <- findInterval(bytes, 1024^(1:5))
  paste(sprintf("%.2f", bytes / 1024^power), c("B", "KB", "MB", "GB", "TB", "PB")[power + 1])
}

shape_text <- function(shape) {
  vapply(shape, \(sizes) if (length(sizes)) paste(sizes, collapse = "x") else "scalar", "")
}
