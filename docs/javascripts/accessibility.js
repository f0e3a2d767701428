// Names and keyboard access that the theme leaves out.
window.addEventListener("load", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search")
  document.querySelectorAll(".md-code__nav").forEach((nav, index) => nav.setAttribute("aria-label", `Code ${index + 1}`))
  for (const region of document.querySelectorAll(".figure, .md-typeset pre > code, .md-typeset__scrollwrap"))
    if (region.scrollWidth > region.clientWidth) region.tabIndex = 0
})
