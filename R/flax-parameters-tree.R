# The tree that print() shows of a table of weights.
#
# The table has one row per weight. These are the paths of a model's weights; in a layer's table,
# they do not begin with the layer's name, and the tree is the same:
#
#     row  layer  path
#     1    net    net/params/Conv_0/bias
#     2    net    net/params/Conv_0/kernel
#     3    net    net/params/block/Dense_0/kernel
#     4    head   head/bias
#
# Its tree has a node for each layer, each name that branches, and each weight. Names with a single
# child are joined to it:
#
#     node  parent  depth  used  last  rows     printed
#     1     0       1      2     5     1, 2, 3  net/params
#     2     1       2      3     4     1, 2     |- Conv_0
#     3     2       3      4     3     1        |  |- bias
#     4     2       3      4     4     2        |  \- kernel
#     5     1       2      5     5     3        \- block/Dense_0/kernel
#     6     0       1      2     6     4        head/bias
#
# If the tree has more lines than print() may show, select_nodes() folds subtrees into one line
# each.

# The nodes, each before its descendants, as a list of columns. `name`: its name. `parent`: the
# parent node, or 0. `depth`: 1 without a parent. `used`: how many names lead to the node, including
# the layer's. `last`: its last descendant, or the node itself for a weight. `rows`: a list of its
# rows in `x`.
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
  paths <- paths_in_layers(x)
  keys <- paste(x$layer, paths, sep = "\n")
  twin <- unsplit(lapply(split(keys, keys), seq_along), keys)
  layers <- paste(x$layer, twin, sep = "\n")
  grow(seq_len(nrow(x)), Map(c, layers, strsplit(paths, "/", fixed = TRUE)), 0, 1, 1)
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
  parts <- strsplit(gsub("[0-9]+", "#", paths_in_layers(x)), "/", fixed = TRUE)
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
  # If the console is too narrow for the additional columns, drop some instead of breaking lines:
  # first those that the user did not ask for.
  dropped <- character()
  if (has_statistics(x) || has_placement(x)) {
    rest <- c("bytes", "dtype", "parameters", "shape", "per device", "sharding")
    rest <- intersect(c(rest, "max", "min", "sd", "mean"), names(fields))
    while (length(rest) > 0 && sum(field_widths(fields)) > cli::console_width()) {
      dropped <- c(dropped, rest[[1]])
      fields[rest[[1]]] <- NULL
      rest <- rest[-1]
    }
  }
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
      text <- paste0(
        "No room for ",
        paste(dropped, collapse = ", "),
        ": see the columns, or widen the console"
      )
      cli::col_grey(strwrap(text, cli::console_width(), prefix = "# "))
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
      bytes = format_bytes(sums("bytes"))
    ),
    if (has_placement(x)) {
      list(
        sharding = vapply(lines, \(line) line_sharding(x[line$rows, ], line$is_folded), ""),
        "per device" = format_bytes(sums("bytes_per_device"))
      )
    },
    Filter(Negate(is.null), statistics),
    list(mark = marks)
  )
}

# What a line says of the sharding of its weights. Nothing if they are replicated, as most are.
line_sharding <- function(x, is_folded) {
  if (nrow(x) == 1 && !is_folded) {
    if (x$sharding == "replicated") "" else x$sharding
  } else if (is_folded && any(is_split(x))) {
    if (all(is_split(x))) "split" else "partly split"
  } else {
    ""
  }
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
    cells <- if (name %in% c("tree", "shape", "dtype", "sharding")) {
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
