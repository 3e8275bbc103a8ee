# Renders one article for tools/articles; its argument is the article's name. The second line of the
# result's header holds a digest of the source: tests/python/test_articles.py finds results that are
# out of date.
name <- commandArgs(TRUE)[[1]]
source <- normalizePath(file.path("vignettes-src", paste0(name, ".Rmd")))
folder <- normalizePath("vignettes")
target <- file.path(folder, paste0(name, ".Rmd"))
scratch <- tempfile("article-")
dir.create(scratch)

options(width = 80, cli.num_colors = 1L, cli.unicode = TRUE)
knitr::opts_knit$set(root.dir = scratch, base.dir = paste0(folder, "/"))
knitr::opts_chunk$set(
  comment = "#>",
  collapse = TRUE,
  error = FALSE,
  fig.path = paste0("figures/", name, "-"),
  fig.width = 7,
  fig.height = 4.5,
  fig.align = "center",
  dpi = 110,
  dev.args = list(type = "cairo")
)
# Python writes warnings to the standard error stream, where knitr does not see them, and with paths
# of this machine.
setHook("reticulate.onPyInit", \() reticulate::py_run_string("
import warnings
warnings.showwarning = lambda message, category, *_: print(f'{category.__name__}: {message}')
"))
# Show a Python exception as the console does. knitr would show its bare text, because reticulate's
# method for as.character() returns that.
registerS3method(
  "sew",
  "python.builtin.BaseException",
  function(x, options, ...) {
    knitr::sew(simpleError(conditionMessage(x), conditionCall(x)), options, ...)
  },
  envir = asNamespace("knitr")
)
pictures <- Sys.glob(file.path(folder, "figures", paste0(name, "-*")))
unlink(pictures)
result <- tempfile(fileext = ".Rmd")
invisible(knitr::knit(source, result, quiet = TRUE, encoding = "UTF-8"))

lines <- readLines(result, encoding = "UTF-8")
end <- which(lines == "---")[[2]]
note <- c(
  "",
  sprintf("<!-- Written by `make articles` from vignettes-src/%s.Rmd; edit that file.", name),
  sprintf("     md5 of the source: %s -->", tools::md5sum(source))
)
lines <- sub("[ \t]+$", "", append(lines, note, end))
writeLines(enc2utf8(lines), target, useBytes = TRUE)
