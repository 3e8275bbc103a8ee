#' Summarize a table of weights as plain data frames, and print it in documents
#'
#' @description
#' `tidy()` returns one row per weight, and `glance()` one row with the totals. Both are generics of
#' the package generics, which broom and other packages export as well. In documents of knitr,
#' R Markdown and Quarto, the table of [flax_parameters()] is printed as a table with a caption;
#' `print()` shows the tree.
#'
#' @param x The result of [flax_parameters()], or rows of it.
#' @param ... Not used by `tidy()` and `glance()`. For `knit_print()`, arguments for
#'   [knitr::kable()].
#'
#' @returns Tibbles if the package tibble is installed, and data frames otherwise:
#' * `tidy()`: the columns of `x`. The column `shape` is text, such as `3x2`.
#' * `glance()`: `weights`, the number of arrays; `parameters`, the number of elements in them;
#'   `trainable` and `non_trainable`, which add up to `parameters`; and `bytes`.
#'
#' `knit_print()` returns a Markdown table.
#'
#' @seealso [flax_parameters()], [plot.flax_parameters()]
#'
#' @examplesIf kerasflax:::runs_examples() && rlang::is_installed("generics")
#' nn <- reticulate::import("flax.linen")
#' model <- keras_model_sequential(3) |>
#'   layer_flax_module_wrapper(nn$Dense(2), name = "dense")
#' parameters <- flax_parameters(model)
#' generics::tidy(parameters)
#' generics::glance(parameters)
#' @name tidy.flax_parameters
NULL

#' @rdname tidy.flax_parameters
#' @exportS3Method generics::tidy flax_parameters
tidy.flax_parameters <- function(x, ...) {
  x <- as_plain(x)
  if (!is.null(x$shape)) {
    x$shape <- shape_text(x$shape)
  }
  as_tibble_if_installed(x)
}

#' @rdname tidy.flax_parameters
#' @exportS3Method generics::glance flax_parameters
glance.flax_parameters <- function(x, ...) {
  check_whole_table(x)
  as_tibble_if_installed(data.frame(
    weights = nrow(x),
    parameters = sum(x$size),
    trainable = sum(x$size[x$trainable]),
    non_trainable = sum(x$size[!x$trainable]),
    bytes = sum(x$bytes)
  ))
}

#' @rdname tidy.flax_parameters
#' @exportS3Method knitr::knit_print flax_parameters
knit_print.flax_parameters <- function(x, ...) {
  if (!has_all_columns(x)) {
    return(knitr::knit_print(as_plain(x), ...))
  }
  columns <- data.frame(
    layer = as_markdown(x$layer),
    weight = as_markdown(paths_in_layers(x)),
    shape = shape_text(x$shape),
    dtype = x$dtype,
    parameters = format_number(x$size),
    trainable = ifelse(x$trainable, "yes", "no")
  )
  align <- c("l", "l", "l", "l", "r", "l")
  if (has_placement(x)) {
    columns$sharding <- x$sharding
    align <- c(align, "l")
  }
  if (has_statistics(x)) {
    columns <- cbind(columns, lapply(as_plain(x)[statistic_columns], signif, 3))
    names(columns)[names(columns) == "n_nonfinite"] <- "not finite"
    align <- c(align, rep("r", length(statistic_columns)))
  }
  caption <- paste0(
    format_count(sum(x$size), "parameter"),
    " (",
    format_bytes(sum(x$bytes)),
    ") in ",
    format_count(nrow(x), "weight"),
    "; ",
    format_number(sum(x$size[x$trainable])),
    " trainable"
  )
  table <- knitr::kable(
    columns,
    format = "pipe",
    align = align,
    caption = caption,
    row.names = FALSE,
    ...
  )
  knitr::knit_print(table)
}

# Names as Markdown: it would read `__` and `*` in them. kable() replaces `|` by an entity, which a
# code span would show.
as_markdown <- function(text) {
  escaped <- gsub("([^[:alnum:][:space:]/|.])", "\\\\\\1", text)
  ifelse(grepl("[|`]", text), escaped, paste0("`", text, "`"))
}

as_plain <- function(x) structure(x, class = setdiff(class(x), "flax_parameters"))

as_tibble_if_installed <- function(x) {
  if (rlang::is_installed("tibble")) tibble::as_tibble(x) else x
}

check_whole_table <- function(x, call = caller_env()) {
  if (!has_all_columns(x)) {
    abort_kerasflax(
      c(
        "{.arg x} must have the columns {.val {parameter_columns}}.",
        x = "{.val {setdiff(parameter_columns, names(x))}} {?is/are} missing or changed.",
        i = "Pass the result of {.fn flax_parameters}, or rows of it."
      ),
      cause = "argument",
      call = call
    )
  }
}
