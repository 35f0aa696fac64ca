// A link to a claim's card opens it; closing it leaves the board.
(function () {
  function open() {
    const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (card && card.matches("[popover]") && card.showPopover && !card.matches(":popover-open")) card.showPopover();
  }
  window.addEventListener("load", open);
  window.addEventListener("hashchange", open);
})();
