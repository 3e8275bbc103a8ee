-- The articles link to each other's files, which a clone of the repository has. In the HTML that is
-- built from an article, they link to each other's pages.
function Link(link)
  link.target = link.target:gsub("^([%w-]+)%.Rmd", "%1.html")
  return link
end
