#' Draw where the parameters of a model are, and what they are like
#'
#' @description
#' `plot()` of what [flax_parameters()] returns draws a bar for each module, or with `"values"` the distribution of each weight.
#' Where 'ggplot2' is installed, `ggplot2::autoplot()` makes the same plots of its kind.
#'
#' # Size by module
#' A module's bar holds its own weights, whatever their collections, and not those of modules in it; the largest are on top. Of
#' more than 30 modules those deep in others are counted in them, if that leaves bars enough to tell something, as the blocks
#' of a transformer do; otherwise the smallest share one bar. The axis is linear, so that lengths are shares of the whole, and
#' each bar has its number beside it. Only the bar of the smallest may be cut, which it says.
#'
#' # Values
#' For each weight, in the order of the rows: the mean, a thick line one standard deviation to either side, and a thin line
#' from the least to the largest value. A cross marks weights with values that are not finite. Of more than 40 weights the
#' largest are drawn, those with values that are not finite before all others; choose rows to see others. Where a few weights
#' reach much farther than most, the axis is logarithmic on both sides of zero, and says so.
#'
#' @param x,object What [flax_parameters()] returns, or rows of it; for `"values"` with `stats = TRUE`.
#' @param what `"size"` for the size by module, `"values"` for the distribution by weight.
#' @param ... For `plot()`, arguments of [graphics::title()], such as `main`, `sub` and `xlab`. Not used by `autoplot()`.
#'
#' @returns `plot()`: `x`, invisibly. `autoplot()`: a ggplot.
#'
#' @examplesIf interactive()
#' flax <- reticulate::import("flax")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(flax$linen$Dense(2L)) |>
#'   layer_dense(1)
#'
#' parameters <- flax_parameters(model, stats = TRUE)
#' plot(parameters)
#' plot(parameters, "values")
#' plot(parameters[parameters$layer == "dense", ], "values")
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
  problem <- if (!is_whole(x)) {
    c(
      x = "Columns of it are missing or changed.",
      i = "Choose rows of what {.fn flax_parameters} returns, not columns."
    )
  } else if (nrow(x) == 0) {
    c(x = "It has no rows.")
  } else if (what == "values" && !has_statistics(x)) {
    c(x = "It has no statistics.", i = "Make it by {.code flax_parameters(object, stats = TRUE)}.")
  }
  if (!is.null(problem)) {
    abort_kerasflax(
      c("{.arg {arg}} must have weights, and all that {.val {what}} draws of them.", problem),
      cause = "argument",
      call = call
    )
  }
  invisible(x)
}

# What is drawn -----------------------------------------------------------------------------------------------------------

# One row per bar, from the largest to the smallest: `parts`, a list of the names on the way to the module, the sizes of what
# is trainable and what is not, and `cut`, the share of its length that a bar is drawn with. The attribute `folded` says where
# modules in others are counted in those.
module_sizes <- function(x, max = 30) {
  parts <- module_parts(x)
  depths <- seq(max(lengths(parts)), 1)
  groups <- vapply(depths, \(depth) length(unique(lapply(parts, utils::head, depth))), 1L)
  # Blocks say more than the few largest of their parts, if there are enough of them.
  fits <- c(which(groups <= max & groups >= max / 4), which(groups > max & groups <= 2 * max), 1)
  depth <- depths[[if (groups[[1]] > max) fits[[1]] else 1]]
  parts <- lapply(parts, utils::head, depth)

  keys <- vapply(parts, paste, "", collapse = "/")
  keys <- factor(keys, unique(keys))
  sums <- function(rows) vapply(split(x$size[rows], keys[rows]), sum, 0, USE.NAMES = FALSE)
  sizes <- data.frame(
    trainable = sums(x$trainable),
    still = sums(!x$trainable),
    cut = rep(1, nlevels(keys))
  )
  sizes$parts <- unname(parts[!duplicated(keys)])
  sizes <- sizes[order(-(sizes$trainable + sizes$still)), ]
  if (nrow(sizes) > max) {
    others <- sizes[-seq_len(max - 1), ]
    sizes <- sizes[seq_len(max), ]
    sizes[max, c("trainable", "still")] <- colSums(others[c("trainable", "still")])
    sizes$parts[[max]] <- paste0("other (", with_commas(nrow(others)), " modules)")
    # Many small ones together would leave no room to compare the large ones.
    ratio <- sum(sizes[max, c("trainable", "still")]) / sum(sizes[1, c("trainable", "still")])
    sizes$cut[[max]] <- if (is.finite(ratio) && ratio > 4) 1.5 / ratio else 1
  }
  rownames(sizes) <- NULL
  if (depth < depths[[1]]) {
    attr(sizes, "folded") <- paste0(
      "\nThe ",
      with_commas(groups[[1]]),
      " modules are counted in these ",
      nrow(sizes)
    )
  }
  sizes
}

# The names on the way to the module that each weight is of: the layer's, unless there is but one, and the modules'.
module_parts <- function(x) {
  Map(
    function(parts, layer, collection) {
      parts <- parts[-length(parts)]
      if (length(parts) > 0 && parts[[1]] %in% collection) {
        parts <- parts[-1]
      }
      if (length(parts) == 0 || length(unique(x$layer)) > 1) c(layer, parts) else parts
    },
    strsplit(x$path, "/", fixed = TRUE),
    x$layer,
    x$collection,
    USE.NAMES = FALSE
  )
}

# One row per weight: `parts`, as above with the weight's own name, the statistics as places on the axis, and how many values
# are not finite. The attributes say what the axis is (`scale`), which weights of how many are here (`shown`), and which names,
# before those in `parts`, all of them have (`shared`).
weight_values <- function(x, max = 40) {
  rows <- order(x$n_nonfinite == 0, -x$size)
  rows <- sort(rows[seq_len(min(max, nrow(x)))])
  chosen <- x[rows, ]
  layer <- if (length(unique(x$layer)) > 1) x$layer[rows]
  values <- data.frame(
    trainable = chosen$trainable,
    size = chosen$size,
    n_nonfinite = chosen$n_nonfinite
  )
  paths <- strsplit(chosen$path, "/", fixed = TRUE)
  paths <- if (is.null(layer)) paths else Map(c, layer, paths, USE.NAMES = FALSE)
  shared <- shared_names(paths)
  values$parts <- lapply(paths, \(path) path[seq_along(path) > length(shared)])
  scale <- value_scale(c(chosen$min, chosen$max))
  chosen$low <- chosen$mean - chosen$sd
  chosen$high <- chosen$mean + chosen$sd
  for (name in c("mean", "low", "high", "min", "max")) {
    values[[name]] <- ifelse(is.finite(chosen[[name]]), scale$place(chosen[[name]]), NA_real_)
  }
  shown <- if (nrow(values) < nrow(x)) {
    first <- if (any(x$n_nonfinite > 0)) "those with values that are not finite, then "
    c(paste(nrow(values), "of", counted(nrow(x), "weight")), paste0(": ", first, "the largest"))
  }
  structure(values, scale = scale, shown = shown, shared = shared)
}

# The names with which all paths begin, other than their last ones.
shared_names <- function(paths) {
  names <- paths[[1]]
  for (path in paths) {
    names <- names[seq_len(min(length(names), length(path) - 1))]
    names <- names[cumsum(names != path[seq_along(names)]) == 0]
  }
  names
}

# The axis for values: linear, unless a few reach more than 50 times as far as half of them do.
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

# Okabe and Ito's colours, told apart by the colour-blind.
trainable_colours <- c(trainable = "#0072B2", "non-trainable" = "#E69F00")

# Names on the way to a module as one label of at most `width` by `measure`: the longest names lose their middles.
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
  # Deep paths keep their ends.
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
  total <- sizes$trainable + sizes$still
  share <- 100 * total / max(sum(total), 1)
  share <- ifelse(total > 0 & share < 0.1, "<0.1", formatC(share, digits = 1, format = "f"))
  paste0(short_count(total), " (", share, " %", ifelse(sizes$cut < 1, ", cut", ""), ")")
}

size_subtitle <- function(sizes) {
  paste0(
    with_commas(sum(sizes$trainable, sizes$still)),
    " parameters: ",
    with_commas(sum(sizes$trainable)),
    " trainable, ",
    with_commas(sum(sizes$still)),
    " non-trainable",
    attr(sizes, "folded")
  )
}

value_subtitle <- function(values) {
  shared <- paste(attr(values, "shared"), collapse = "/")
  weights <- attr(values, "shown") %||% c(counted(nrow(values), "weight"), "")
  paste0(
    weights[[1]],
    if (nzchar(shared)) paste0(" in ", shared),
    weights[[2]],
    "\nPoint: mean. Thick: one sd to either side. Thin: least to largest"
  )
}

bad_labels <- function(values) {
  ifelse(
    values$n_nonfinite > 0,
    paste(short_count(values$n_nonfinite), "not finite"),
    ifelse(values$size == 0, "empty", "")
  )
}

# Base graphics -------------------------------------------------------------------------------------------------------------

# Opens a plot of one row per label, from the top, with margins that fit. `notes` are what stands to the right of the rows, and
# `x_limits` a function of the share of the width that they take. Returns the size of the text and half the height of a bar.
open_rows <- function(parts, notes, x_limits, subtitle) {
  graphics::par(mar = c(0, 0, 0, 0))
  graphics::plot.new()
  inches <- graphics::par("fin")
  line <- graphics::par("csi")
  margins <- c(bottom = 3.2, top = lengths(strsplit(subtitle, "\n", fixed = TRUE)) + 3.3) * line
  row <- max(inches[[2]] - sum(margins), 0.1) / length(parts)
  cex <- min(0.9, max(0.35, 0.85 * row / line))
  width <- function(text) max(0, graphics::strwidth(text, units = "inches", cex = cex))
  # Smaller text first, then shorter names.
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

# The titles at the left edge of the figure, over the labels too: they may be longer than the plot is wide.
add_titles <- function(titles, defaults, subtitle, colours) {
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
    names(colours),
    fill = colours,
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
  total <- sizes$trainable + sizes$still
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
  middle <- sizes$trainable * sizes$cut
  starts <- list(0, middle)
  ends <- list(middle, drawn)
  for (i in 1:2) {
    graphics::rect(
      starts[[i]],
      rows - frame$half,
      ends[[i]],
      rows + frame$half,
      col = trainable_colours[[i]],
      border = NA
    )
  }
  torn <- sizes$cut < 1
  tear <- 0.9 * drawn[torn]
  gap <- graphics::xinch(0.05)
  graphics::segments(
    tear - gap,
    rows[torn] + 0.5,
    tear + gap,
    rows[torn] - 0.5,
    col = "white",
    lwd = 4
  )
  graphics::text(drawn, rows, notes, pos = 4, offset = 0.3, cex = frame$cex, xpd = NA)
  graphics::axis(1, at, short_count(at), cex.axis = 0.8, mgp = c(2, 0.5, 0), tcl = -0.3)
  defaults <- list(main = "Parameters by module", xlab = "Parameters")
  add_titles(titles, defaults, size_subtitle(sizes), trainable_colours)
}

plot_values <- function(values, titles) {
  old <- graphics::par("mar", "mgp")
  on.exit(graphics::par(old))
  scale <- attr(values, "scale")
  subtitle <- value_subtitle(values)
  notes <- bad_labels(values)
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
  colours <- ifelse(values$trainable, trainable_colours[[1]], trainable_colours[[2]])
  graphics::segments(values$min, rows, values$max, rows, col = colours, lwd = 1.2)
  half <- 0.6 * frame$half
  graphics::rect(values$low, rows - half, values$high, rows + half, col = colours, border = NA)
  graphics::points(
    values$mean,
    rows,
    pch = 21,
    bg = "white",
    col = colours,
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
    trainable_colours
  )
}

# ggplot2 -------------------------------------------------------------------------------------------------------------------

# The labels of rows from the top, as a factor whose levels go from the bottom. They may be equal where names were shortened.
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
  total <- sizes$trainable + sizes$still
  rows <- seq_along(total)
  drawn <- total * sizes$cut
  middle <- sizes$trainable * sizes$cut
  kinds <- names(trainable_colours)
  bars <- data.frame(
    row = rep(rows, 2),
    from = c(0 * total, middle),
    to = c(middle, drawn),
    kind = factor(rep(kinds, each = length(rows)), kinds)
  )
  notes <- data.frame(row = rows, end = drawn, text = size_labels(sizes))
  torn <- notes[sizes$cut < 1, ]
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
      torn,
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
    ggplot2::scale_fill_manual(values = trainable_colours, drop = FALSE) +
    ggplot2::labs(title = "Parameters by module", subtitle = size_subtitle(sizes), x = "Parameters")
}

ggplot_values <- function(values) {
  scale <- attr(values, "scale")
  kinds <- names(trainable_colours)
  values$row <- seq_len(nrow(values))
  values$kind <- factor(ifelse(values$trainable, kinds[[1]], kinds[[2]]), kinds)
  values$text <- bad_labels(values)
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
    ggplot2::scale_colour_manual(values = trainable_colours, drop = FALSE) +
    ggplot2::labs(title = "Values by weight", subtitle = value_subtitle(values), x = scale$title)
}
