# Checks the spelling of the help, the articles and the other pages for `make lint`. Words that a
# dictionary of American English does not have are in inst/WORDLIST, sorted without regard to case.
known <- readLines("inst/WORDLIST", encoding = "UTF-8")
files <- c(
  list.files("man", "[.]Rd$", full.names = TRUE),
  list.files("vignettes-src", "[.]Rmd$", full.names = TRUE),
  list.files("docs", "[.]md$", full.names = TRUE),
  "inst/python/kerasflax/README.md",
  list.files(".", "^[A-Z]+[.]md$"),
  "cran-comments.md"
)
found <- spelling::spell_check_files(setdiff(files, "LICENSE.md"), ignore = known, lang = "en_US")
if (nrow(found)) {
  cat("Misspelled, or missing in inst/WORDLIST:\n")
  print(found)
}

# A word that no file needs any longer hides a mistake.
all <- spelling::spell_check_files(setdiff(files, "LICENSE.md"), lang = "en_US")$word
unused <- setdiff(known, all)
if (length(unused)) cat("Unused in inst/WORDLIST: ", toString(unused), "\n", sep = "")

sorted <- known[order(tolower(known), known, method = "radix")]
if (!identical(known, sorted)) cat("inst/WORDLIST is not sorted.\n")
quit(status = as.integer(nrow(found) > 0 || length(unused) > 0 || !identical(known, sorted)))
