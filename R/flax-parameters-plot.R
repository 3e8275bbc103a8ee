#' Plot the sizes or values of a model's parameters
#'
#' @description
#' The `plot()` method for the result of [flax_parameters()] draws one bar for each module, or, with
#' `"values"`, the distribution of each weight. If ggplot2 is installed, `ggplot2::autoplot()`
#' returns the same plots as ggplots.
#'
#' # Size by module
#' A module's bar contains its own weights from all collections, but not those of its submodules.
#' The largest modules are on top. For more than 30 modules, deep submodules are counted in their
#' parents, for example in the blocks of a transformer, if enough bars remain to be informative.
#' Otherwise, the smallest modules share one bar. The axis is linear, so lengths are proportional to
#' sizes, and a label states the size of each bar. Only the bar of the smallest modules can be cut;
#' its label says so.
#'
#' With a distribution ([flax_distribute()]), what is split over devices has lighter colors, in both
#' plots.
#'
#' # Values
#' Each weight, in the order of the rows, has a point for the mean, a thick line that extends one
#' standard deviation to each side, and a thin line from the smallest to the largest value. A cross
#' marks weights with values that are not finite. For more than 40 weights, the largest are drawn,
#' after those with values that are not finite; select rows to see others. If a few weights extend
#' much farther than most, the axis is logarithmic on both sides of zero, and its title says so.
#'
#' @param x,object The result of [flax_parameters()], or rows of it. `"values"` requires
#'   `stats = TRUE`.
#' @param what `"size"` for the size of each module, or `"values"` for the distribution of each
#'   weight.
#' @param ... For `plot()`, arguments of [graphics::title()], such as `main`, `sub` and `xlab`. Not
#'   used by `autoplot()`.
#'
#' @returns `plot()` returns `x`, invisibly. `autoplot()` returns a ggplot.
#'
#' @seealso [flax_parameters()], `vignette("inspect-and-save")`
#' @examplesIf kerasflax:::runs_examples()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L), name = "hidden") |>
#'   layer_dense(1, name = "head")
#'
#' parameters <- flax_parameters(model, stats = TRUE)
#' plot(parameters)
#' plot(parameters, "values")
#' plot(parameters[parameters$layer == "hidden", ], "values")
#' @export
plot.flax_parameters <- function(x, what = c("size", "values"), ...) {
  what <- rlang::arg_match(what)
  check_can_be_drawn(x, what)
  titles <- list(...)
  if (what == "size") {
    plot_sizes(module_sizes(x), titles)
  } else {
    plot_values(weight_values(x), titles)
  }
  invisible(x)
}

#' @rdname plot.flax_parameters
#' @usage \method{autoplot}{flax_parameters}(object, what = c("size", "values"), ...)
#' @exportS3Method ggplot2::autoplot
#' @importFrom rlang .data
autoplot.flax_parameters <- function(object, what = c("size", "values"), ...) {
  what <- rlang::arg_match(what)
  check_can_be_drawn(object, what, arg = "object")
  if (what == "size") ggplot_sizes(module_sizes(object)) else ggplot_values(weight_values(object))
}

check_can_be_drawn <- function(x, what, arg = "x", call = caller_env()) {
  problem <- if (!has_all_columns(x)) {
    c(
      x = "Some of its columns are missing or changed.",
      i = "Select rows of the result of {.fn flax_parameters}, not columns."
    )
  } else if (nrow(x) == 0) {
    c(x = "It has no rows.")
  } else if (what == "values" && !has_statistics(x)) {
    c(
      x = "It has no statistics.",
      i = "Create it with {.code flax_parameters(object, stats = TRUE)}."
    )
  }
  if (!is.null(problem)) {
    abort_kerasflax(
      c(
        "{.arg {arg}} must be a table of weights, with the columns that {.val {what}} draws.",
        problem
      ),
      cause = "argument",
      call = call
    )
  }
  invisible(x)
}

# Data for the plots -----------------------------------------------------------------------------

# One row for each bar, in descending order of size. `parts`: a list of the names that lead to the
# module. `trainable` and `non_trainable`: sizes; with a distribution also `trainable_split` and
# `non_trainable_split`, their parts that are split over devices. `cut`: the fraction of its length
# with which the bar is drawn. The attribute `folded` is text that says that submodules are counted
# in their parents.
module_sizes <- function(x, max = 30) {
  parts <- module_parts(x)
  depths <- seq(max(lengths(parts)), 1)
  groups <- vapply(depths, \(depth) length(unique(lapply(parts, utils::head, depth))), 1L)
  # If there are enough blocks, they are more informative than their few largest submodules.
  usable <- c(which(groups <= max & groups >= max / 4), which(groups > max & groups <= 2 * max), 1)
  depth <- depths[[if (groups[[1]] > max) usable[[1]] else 1]]
  parts <- lapply(parts, utils::head, depth)

  keys <- vapply(parts, paste, "", collapse = "/")
  keys <- factor(keys, unique(keys))
  sums <- function(rows) vapply(split(x$size[rows], keys[rows]), sum, 0, USE.NAMES = FALSE)
  sizes <- data.frame(
    trainable = sums(x$trainable),
    non_trainable = sums(!x$trainable),
    cut = rep(1, nlevels(keys))
  )
  if (has_placement(x)) {
    sizes$trainable_split <- sums(x$trainable & is_split(x))
    sizes$non_trainable_split <- sums(!x$trainable & is_split(x))
  }
  numbers <- setdiff(names(sizes), "cut")
  sizes$parts <- unname(parts[!duplicated(keys)])
  sizes <- sizes[order(-(sizes$trainable + sizes$non_trainable)), ]
  if (nrow(sizes) > max) {
    others <- sizes[-seq_len(max - 1), ]
    sizes <- sizes[seq_len(max), ]
    sizes[max, numbers] <- colSums(others[numbers])
    sizes$parts[[max]] <- paste0("other (", format_number(nrow(others)), " modules)")
    # The sum of many small modules would leave no room to compare the large ones.
    totals <- sizes$trainable + sizes$non_trainable
    ratio <- totals[[max]] / totals[[1]]
    sizes$cut[[max]] <- if (is.finite(ratio) && ratio > 4) 1.5 / ratio else 1
  }
  rownames(sizes) <- NULL
  if (depth < depths[[1]]) {
    attr(sizes, "folded") <- paste0(
      "\nThe ",
      format_number(groups[[1]]),
      " modules are grouped into these ",
      nrow(sizes)
    )
  }
  sizes
}

# The names that lead to the module of each weight. The layer's name is omitted if there is only one
# layer.
module_parts <- function(x) {
  Map(
    function(parts, layer, collection) {
      parts <- parts[-length(parts)]
      if (length(parts) > 0 && parts[[1]] %in% collection) {
        parts <- parts[-1]
      }
      if (length(parts) == 0 || length(unique(x$layer)) > 1) c(layer, parts) else parts
    },
    strsplit(paths_in_layers(x), "/", fixed = TRUE),
    x$layer,
    x$collection,
    USE.NAMES = FALSE
  )
}

# The size of each bar's parts, from left to right, named by their kinds in `kind_colors`.
size_kinds <- function(sizes) {
  if (is.null(sizes$trainable_split)) {
    return(list(trainable = sizes$trainable, "non-trainable" = sizes$non_trainable))
  }
  list(
    trainable = sizes$trainable - sizes$trainable_split,
    "trainable, split" = sizes$trainable_split,
    "non-trainable" = sizes$non_trainable - sizes$non_trainable_split,
    "non-trainable, split" = sizes$non_trainable_split
  )
}

# One row for each weight: `parts`, as above with the weight's own name, the statistics as positions
# on the axis, and the number of values that are not finite. The attributes describe the axis
# (`scale`), the selection of weights (`selection`) and the names that all weights share, which are
# not in `parts` (`shared`).
weight_values <- function(x, max = 40) {
  rows <- order(x$n_nonfinite == 0, -x$size)
  rows <- sort(rows[seq_len(min(max, nrow(x)))])
  selected <- x[rows, ]
  layer <- if (length(unique(x$layer)) > 1) x$layer[rows]
  values <- data.frame(
    trainable = selected$trainable,
    size = selected$size,
    n_nonfinite = selected$n_nonfinite
  )
  if (has_placement(x)) {
    values$is_split <- is_split(selected)
  }
  paths <- strsplit(paths_in_layers(selected), "/", fixed = TRUE)
  paths <- if (is.null(layer)) paths else Map(c, layer, paths, USE.NAMES = FALSE)
  shared <- shared_names(paths)
  values$parts <- lapply(paths, \(path) path[seq_along(path) > length(shared)])
  scale <- value_scale(c(selected$min, selected$max))
  selected$low <- selected$mean - selected$sd
  selected$high <- selected$mean + selected$sd
  for (name in c("mean", "low", "high", "min", "max")) {
    values[[name]] <- ifelse(is.finite(selected[[name]]), scale$place(selected[[name]]), NA_real_)
  }
  selection <- if (nrow(values) < nrow(x)) {
    first <- if (any(x$n_nonfinite > 0)) "those with values that are not finite, then "
    c(
      paste(nrow(values), "of", format_count(nrow(x), "weight")),
      paste0(": ", first, "the largest")
    )
  }
  structure(values, scale = scale, selection = selection, shared = shared)
}

# The names at the start of all paths, without the last name of a path.
shared_names <- function(paths) {
  names <- paths[[1]]
  for (path in paths) {
    names <- names[seq_len(min(length(names), length(path) - 1))]
    names <- names[cumsum(names != path[seq_along(names)]) == 0]
  }
  names
}

# The axis for values. It is linear, unless the largest value is more than 50 times the median.
value_scale <- function(values) {
  values <- values[is.finite(values)]
  reach <- abs(values[values != 0])
  unit <- if (length(reach) > 0) stats::median(reach) else 1
  if (length(reach) == 0 || max(reach) <= 50 * unit) {
    at <- pretty(c(0, values))
    return(list(
      place = identity,
      at = at,
      labels = format(at, trim = TRUE, drop0trailing = TRUE),
      title = "Value"
    ))
  }
  place <- function(value) asinh(value / unit)
  powers <- 10^seq(ceiling(log10(unit)), ceiling(log10(max(reach))))
  at <- c(if (any(values < 0)) -rev(powers), 0, powers)
  at <- at[place(at) >= min(place(c(0, values))) - 0.5 & place(at) <= max(place(values)) + 0.5]
  list(
    place = place,
    at = place(at),
    labels = vapply(at, format, ""),
    title = "Value (logarithmic on both sides of zero)"
  )
}

# From the palette of Okabe and Ito, which colorblind readers can distinguish.
kind_colors <- c(
  trainable = "#0072B2",
  "trainable, split" = "#56B4E9",
  "non-trainable" = "#E69F00",
  "non-trainable, split" = "#F0E442"
)
undistributed_kinds <- c("trainable", "non-trainable")

# The kind of each weight, as a factor of the kinds in the legend.
value_kinds <- function(values) {
  kinds <- if (is.null(values$is_split)) undistributed_kinds else names(kind_colors)
  kind <- ifelse(values$trainable, "trainable", "non-trainable")
  if (!is.null(values$is_split)) {
    kind[values$is_split] <- paste0(kind[values$is_split], ", split")
  }
  factor(kind, kinds)
}

# The names as one label of at most `width`, measured by `measure`. The longest names lose their
# middle.
as_label <- function(parts, width, measure = nchar) {
  shortened <- function(part, limit) {
    if (nchar(part) <= limit) {
      return(part)
    }
    end <- (limit - 2) %/% 2
    paste0(substr(part, 1, limit - 2 - end), "..", substr(part, nchar(part) - end + 1, nchar(part)))
  }
  for (limit in seq(max(nchar(parts)), 5)) {
    label <- paste(vapply(parts, shortened, "", limit), collapse = "/")
    if (measure(label) <= width) break
  }
  # A deep path keeps its end.
  while (measure(label) > width && grepl("/", sub("^[.][.]/", "", label), fixed = TRUE)) {
    label <- sub("^([.][.]/)?[^/]*/", "../", label)
  }
  label
}

short_count <- function(number) {
  power <- findInterval(number, 1000^(1:4))
  paste0(
    trimws(formatC(number / 1000^power, format = "fg", digits = 3)),
    c("", "k", "M", "G", "T")[power + 1]
  )
}

size_labels <- function(sizes) {
  total <- sizes$trainable + sizes$non_trainable
  share <- 100 * total / max(sum(total), 1)
  share <- ifelse(total > 0 & share < 0.1, "<0.1", formatC(share, digits = 1, format = "f"))
  paste0(short_count(total), " (", share, " %", ifelse(sizes$cut < 1, ", cut", ""), ")")
}

size_subtitle <- function(sizes) {
  paste0(
    format_number(sum(sizes$trainable, sizes$non_trainable)),
    " parameters: ",
    format_number(sum(sizes$trainable)),
    " trainable, ",
    format_number(sum(sizes$non_trainable)),
    " non-trainable",
    if (!is.null(sizes$trainable_split)) {
      paste0("; ", format_number(sum(sizes$trainable_split, sizes$non_trainable_split)), " split")
    },
    attr(sizes, "folded")
  )
}

value_subtitle <- function(values) {
  shared <- paste(attr(values, "shared"), collapse = "/")
  weights <- attr(values, "selection") %||% c(format_count(nrow(values), "weight"), "")
  paste0(
    weights[[1]],
    if (nzchar(shared)) paste0(" in ", shared),
    weights[[2]],
    "\nPoint: mean. Thick: one sd to either side. Thin: smallest to largest"
  )
}

nonfinite_labels <- function(values) {
  ifelse(
    values$n_nonfinite > 0,
    paste(short_count(values$n_nonfinite), "not finite"),
    ifelse(values$size == 0, "empty", "")
  )
}

# Base graphics ----------------------------------------------------------------------------------

# Opens a plot with one row for each label, from top to bottom, and with fitting margins. `notes` is
# the text to the right of the rows, and `x_limits` is a function of the fraction of the width that
# the notes take. Returns the text size and half the height of a bar.
open_rows <- function(parts, notes, x_limits, subtitle) {
  graphics::par(mar = c(0, 0, 0, 0))
  graphics::plot.new()
  inches <- graphics::par("fin")
  line <- graphics::par("csi")
  margins <- c(bottom = 3.2, top = lengths(strsplit(subtitle, "\n", fixed = TRUE)) + 3.3) * line
  row <- max(inches[[2]] - sum(margins), 0.1) / length(parts)
  cex <- min(0.9, max(0.35, 0.85 * row / line))
  width <- function(text) max(0, graphics::strwidth(text, units = "inches", cex = cex))
  # Reduce the text size first, then shorten names.
  room <- 0.45 * inches[[1]]
  cex <- cex *
    max(min(1, 0.7 / cex), min(1, room / width(vapply(parts, paste, "", collapse = "/"))))
  labels <- vapply(parts, as_label, "", width = room, measure = width)
  left <- width(labels) + 0.8 * line
  graphics::par(mai = c(margins[["bottom"]], left, margins[["top"]], 0.8 * line))
  taken <- min(0.5, (width(notes) + line * cex) / (inches[[1]] - left - 0.8 * line))
  graphics::plot.window(x_limits(taken), c(length(parts) + 0.5, 0.5), xaxs = "i", yaxs = "i")
  graphics::mtext(
    labels,
    side = 2,
    line = 0.4,
    at = seq_along(labels),
    las = 1,
    cex = cex * graphics::par("cex")
  )
  list(cex = cex, half = min(0.4, 0.14 / row))
}

# Draws the titles from the left edge of the figure, above the labels, because they can be wider
# than the plot.
add_titles <- function(titles, defaults, subtitle, colors) {
  titles <- c(titles, defaults[setdiff(names(defaults), names(titles))])
  main <- titles$main
  titles$main <- NULL
  subtitle <- strsplit(subtitle, "\n", fixed = TRUE)[[1]]
  edge <- graphics::grconvertX(0.3 * graphics::par("csi"), "inches", "user")
  edge <- edge + graphics::grconvertX(0, "nfc", "user") - graphics::grconvertX(0, "ndc", "user")
  cex <- graphics::par("cex")
  graphics::mtext(
    main,
    line = length(subtitle) + 1.9,
    at = edge,
    adj = 0,
    font = 2,
    cex = 1.1 * cex
  )
  lines <- rev(seq_along(subtitle)) + 0.6
  graphics::mtext(subtitle, line = lines, at = edge, adj = 0, cex = 0.8 * cex, col = "grey30")
  legend_at <- graphics::grconvertY(
    graphics::grconvertY(1, "npc", "inches") + 1.5 * graphics::par("csi"),
    "inches",
    "user"
  )
  graphics::legend(
    edge,
    legend_at,
    names(colors),
    fill = colors,
    border = NA,
    horiz = TRUE,
    bty = "n",
    xpd = NA,
    cex = 0.8,
    x.intersp = 0.5
  )
  do.call(graphics::title, c(titles, list(line = 2)))
}

plot_sizes <- function(sizes, titles) {
  old <- graphics::par("mar", "mgp")
  on.exit(graphics::par(old))
  total <- sizes$trainable + sizes$non_trainable
  notes <- size_labels(sizes)
  drawn <- total * sizes$cut
  frame <- open_rows(
    sizes$parts,
    notes,
    \(taken) c(0, max(drawn, 1) / (1 - taken)),
    size_subtitle(sizes)
  )
  at <- pretty(c(0, max(drawn, 1)))
  at <- at[at <= graphics::par("usr")[[2]]]
  graphics::abline(v = at, col = "grey90")
  rows <- seq_along(total)
  kinds <- size_kinds(sizes)
  ends <- Reduce(`+`, kinds, accumulate = TRUE)
  for (i in seq_along(kinds)) {
    graphics::rect(
      (ends[[i]] - kinds[[i]]) * sizes$cut,
      rows - frame$half,
      ends[[i]] * sizes$cut,
      rows + frame$half,
      col = kind_colors[[names(kinds)[[i]]]],
      border = NA
    )
  }
  is_cut <- sizes$cut < 1
  tear <- 0.9 * drawn[is_cut]
  gap <- graphics::xinch(0.05)
  graphics::segments(
    tear - gap,
    rows[is_cut] + 0.5,
    tear + gap,
    rows[is_cut] - 0.5,
    col = "white",
    lwd = 4
  )
  graphics::text(drawn, rows, notes, pos = 4, offset = 0.3, cex = frame$cex, xpd = NA)
  graphics::axis(1, at, short_count(at), cex.axis = 0.8, mgp = c(2, 0.5, 0), tcl = -0.3)
  defaults <- list(main = "Parameters by module", xlab = "Parameters")
  add_titles(titles, defaults, size_subtitle(sizes), kind_colors[names(kinds)])
}

plot_values <- function(values, titles) {
  old <- graphics::par("mar", "mgp")
  on.exit(graphics::par(old))
  scale <- attr(values, "scale")
  subtitle <- value_subtitle(values)
  notes <- nonfinite_labels(values)
  range <- range(0, scale$at, unlist(values[c("min", "max", "low", "high")]), na.rm = TRUE)
  if (diff(range) == 0) {
    range <- c(0, 1)
  }
  range <- range + c(-0.02, 0.02) * diff(range)
  has_notes <- any(nzchar(notes))
  x_limits <- \(taken) {
    if (has_notes) c(range[[1]], range[[1]] + diff(range) / (1 - taken)) else range
  }
  frame <- open_rows(values$parts, paste("x", notes), x_limits, subtitle)
  rows <- seq_along(notes)
  graphics::abline(v = scale$at, col = "grey90")
  graphics::abline(v = scale$place(0), col = "grey50")
  kinds <- value_kinds(values)
  colors <- kind_colors[as.character(kinds)]
  graphics::segments(values$min, rows, values$max, rows, col = colors, lwd = 1.2)
  half <- 0.6 * frame$half
  graphics::rect(values$low, rows - half, values$high, rows + half, col = colors, border = NA)
  graphics::points(
    values$mean,
    rows,
    pch = 21,
    bg = "white",
    col = colors,
    lwd = 1.5,
    cex = frame$cex
  )
  bad <- values$n_nonfinite > 0
  graphics::points(
    rep(range[[2]], sum(bad)),
    rows[bad],
    pch = 4,
    lwd = 2,
    cex = frame$cex,
    xpd = NA
  )
  graphics::text(
    rep(range[[2]], length(rows)),
    rows,
    notes,
    pos = 4,
    offset = 0.6,
    cex = frame$cex,
    xpd = NA
  )
  graphics::axis(1, scale$at, scale$labels, cex.axis = 0.8, mgp = c(2, 0.5, 0), tcl = -0.3)
  add_titles(
    titles,
    list(main = "Values by weight", xlab = scale$title),
    subtitle,
    kind_colors[levels(kinds)]
  )
}

# ggplot2 ----------------------------------------------------------------------------------------

# The labels of the rows, from top to bottom. Shortened labels can be identical.
row_labels <- function(parts) vapply(parts, as_label, "", width = 55)

ggplot_rows <- function(data, parts) {
  rows <- seq_along(parts)
  ggplot2::ggplot(data) +
    ggplot2::scale_y_reverse(
      breaks = rows,
      labels = row_labels(parts),
      expand = c(0, 0.3),
      minor_breaks = NULL
    ) +
    ggplot2::labs(y = NULL, fill = NULL, colour = NULL) +
    ggplot2::theme_minimal() +
    ggplot2::theme(
      legend.position = "bottom",
      plot.title.position = "plot",
      panel.grid.major.y = ggplot2::element_blank(),
      panel.grid.minor = ggplot2::element_blank()
    )
}

ggplot_sizes <- function(sizes) {
  total <- sizes$trainable + sizes$non_trainable
  rows <- seq_along(total)
  drawn <- total * sizes$cut
  kinds <- size_kinds(sizes)
  ends <- Reduce(`+`, kinds, accumulate = TRUE)
  cut <- rep(sizes$cut, length(kinds))
  bars <- data.frame(
    row = rep(rows, length(kinds)),
    from = (unlist(ends) - unlist(kinds, use.names = FALSE)) * cut,
    to = unlist(ends) * cut,
    kind = factor(rep(names(kinds), each = length(rows)), names(kinds))
  )
  notes <- data.frame(row = rows, end = drawn, text = size_labels(sizes))
  cut_bars <- notes[sizes$cut < 1, ]
  ggplot_rows(bars, sizes$parts) +
    ggplot2::geom_rect(
      ggplot2::aes(
        xmin = .data$from,
        xmax = .data$to,
        ymin = .data$row - 0.4,
        ymax = .data$row + 0.4,
        fill = .data$kind
      )
    ) +
    ggplot2::geom_segment(
      ggplot2::aes(
        x = 0.89 * .data$end,
        xend = 0.91 * .data$end,
        y = .data$row + 0.5,
        yend = .data$row - 0.5
      ),
      cut_bars,
      colour = "white",
      linewidth = 1.5
    ) +
    ggplot2::geom_text(
      ggplot2::aes(x = .data$end, y = .data$row, label = .data$text),
      notes,
      hjust = 0,
      nudge_x = max(drawn, 1) / 100,
      size = 2.8
    ) +
    ggplot2::scale_x_continuous(labels = short_count, expand = ggplot2::expansion(c(0, 0.3))) +
    ggplot2::scale_fill_manual(values = kind_colors[names(kinds)], drop = FALSE) +
    ggplot2::labs(title = "Parameters by module", subtitle = size_subtitle(sizes), x = "Parameters")
}

ggplot_values <- function(values) {
  scale <- attr(values, "scale")
  values$row <- seq_len(nrow(values))
  values$kind <- value_kinds(values)
  values$text <- nonfinite_labels(values)
  edge <- max(scale$at, values$max, values$high, na.rm = TRUE)
  noted <- values[nzchar(values$text), ]
  bad <- values[values$n_nonfinite > 0, ]
  y <- rlang::quo(.data$row)
  ggplot_rows(values, values$parts) +
    ggplot2::geom_vline(xintercept = scale$place(0), colour = "grey50") +
    ggplot2::geom_linerange(
      ggplot2::aes(xmin = .data$min, xmax = .data$max, y = !!y, colour = .data$kind),
      na.rm = TRUE
    ) +
    ggplot2::geom_linerange(
      ggplot2::aes(xmin = .data$low, xmax = .data$high, y = !!y, colour = .data$kind),
      linewidth = 2.2,
      na.rm = TRUE
    ) +
    ggplot2::geom_point(
      ggplot2::aes(.data$mean, !!y, colour = .data$kind),
      shape = 21,
      fill = "white",
      size = 1.3,
      stroke = 0.8,
      na.rm = TRUE,
      show.legend = FALSE
    ) +
    ggplot2::geom_point(ggplot2::aes(edge, !!y), bad, shape = 4, stroke = 1) +
    ggplot2::geom_text(
      ggplot2::aes(edge, !!y, label = .data$text),
      noted,
      hjust = -0.15,
      size = 2.8
    ) +
    ggplot2::scale_x_continuous(
      breaks = scale$at,
      labels = scale$labels,
      expand = ggplot2::expansion(c(0.02, if (nrow(noted) > 0) 0.25 else 0.02))
    ) +
    ggplot2::scale_colour_manual(values = kind_colors[levels(values$kind)], drop = FALSE) +
    ggplot2::labs(title = "Values by weight", subtitle = value_subtitle(values), x = scale$title)
}
