# Builds the site for tools/site: pkgdown's pages from a copy of the sources. The pages load nothing
# from another address: pkgdown/templates replaces the templates that would.
#
#     tools/site.R SOURCES SITE
arguments <- commandArgs(TRUE)
sources <- normalizePath(arguments[[1]])
site <- normalizePath(arguments[[2]])
setwd(sources)

read <- function(...) readLines(..., encoding = "UTF-8")
write <- function(lines, path) writeLines(enc2utf8(lines), path, useBytes = TRUE)

# ---- Pages that are neither articles nor help

header <- c(
  "---",
  "title: \"For Python users\"",
  "output: rmarkdown::html_vignette",
  "vignette: >",
  "  %\\VignetteIndexEntry{For Python users}",
  "  %\\VignetteEngine{knitr::rmarkdown}",
  "  %\\VignetteEncoding{UTF-8}",
  "---"
)
write(c(header, read("inst/python/kerasflax/README.md")[-1]), "vignettes/python.Rmd")
invisible(file.copy(c("docs/core.md", "docs/design.md"), "."))

# Links between files of the repository, as links between pages
pages <- c(
  "(\\.\\./)?inst/python/kerasflax/README\\.md" = "articles/python.html",
  "(docs/)?core\\.md" = "core.html",
  "(docs/)?design\\.md" = "design.html",
  "CONTRIBUTING\\.md" = "CONTRIBUTING.html",
  "SECURITY\\.md" = "SECURITY.html"
)
for (file in c("README.md", "CONTRIBUTING.md", "SECURITY.md", "core.md", "design.md")) {
  lines <- read(file)
  for (link in names(pages)) {
    lines <- gsub(sprintf("\\]\\(%s(#[^)]*)?\\)", link), sprintf("](%s)", pages[[link]]), lines)
  }
  lines <- gsub("\\]\\(vignettes/([^)]*)[.]Rmd\\)", "](articles/\\1.html)", lines)
  # The site does not show the code.
  lines <- gsub("\\[([^]]*)\\]\\(inst/[^)]*\\)", "\\1", lines)
  write(lines, file)
}

for (file in Sys.glob("vignettes/*.Rmd")) {
  write(gsub("\\]\\(([[:alnum:]-]+)[.]Rmd", "](\\1.html", read(file)), file)
}

# ---- pkgdown, which also runs the examples of the help pages

# Do not ask whether the package is on CRAN.
options(pkgdown.internet = FALSE)
pkgdown::build_site(
  ".",
  devel = FALSE, install = FALSE, new_process = FALSE, preview = FALSE,
  override = list(destination = site)
)

# ---- The search

# One entry for each page, and one for each of its sections.
entries_of <- function(file) {
  html <- xml2::read_html(file, encoding = "UTF-8")
  # pkgdown shows a logo without an address if there is none.
  xml2::xml_remove(xml2::xml_find_all(html, "//img[@src='' and contains(@class, 'logo')]"))
  # Pandoc moves the text of a picture that stands alone into its caption.
  for (figure in xml2::xml_find_all(html, "//div[@class='figure']")) {
    picture <- xml2::xml_find_first(figure, ".//img[@alt='']")
    caption <- xml2::xml_text(xml2::xml_find_first(figure, "./p[@class='caption']"))
    if (!is.na(caption)) xml2::xml_set_attr(picture, "alt", caption)
  }
  drawn <- xml2::xml_find_all(html, "//*[@class='r-plt img']/img[not(string(@alt))]")
  xml2::xml_set_attr(drawn, "alt", "The plot that the line above draws")
  xml2::write_html(html, file, format = FALSE)
  path <- substring(file, nchar(site) + 2)
  text_of <- function(nodes) gsub("\\s+", " ", paste(xml2::xml_text(nodes), collapse = " "))
  main <- xml2::xml_find_first(html, "//main")
  entry <- function(node, heading, id) {
    list(
      path = path,
      id = id,
      name = sub("[.]html$", "", basename(path)),
      title = text_of(xml2::xml_find_first(html, "//h1")),
      heading = heading,
      text = text_of(node)
    )
  }
  sections <- xml2::xml_find_all(
    main, ".//div[contains(@class, 'section') and (h2 or h3)][ancestor-or-self::div/@id]"
  )
  of_section <- function(section) {
    heading <- xml2::xml_find_first(section, "./h2|./h3")
    ids <- c(xml2::xml_attr(heading, "id"), xml2::xml_attr(section, "id"))
    entry(section, text_of(heading), stats::na.omit(ids)[1])
  }
  c(list(entry(main, "", "")), lapply(sections, of_section))
}
files <- list.files(site, "[.]html$", recursive = TRUE, full.names = TRUE)
index <- unlist(lapply(files, entries_of), recursive = FALSE)
# A script, because a page that is read as a file may not fetch another file.
json <- jsonlite::toJSON(index, auto_unbox = TRUE)
write(paste0("window.searchIndex = ", json, ";"), file.path(site, "search.js"))

unused <- c("search.json", "pkgdown.js", "deps/data-deps.txt")
invisible(file.remove(file.path(site, unused)))
