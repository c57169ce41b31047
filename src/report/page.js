"use strict";
// Headers of the table become buttons that sort it; without this it is a table in the model's order.
(function () {
  var table = document.getElementById("layers");
  var body = table.tBodies[0];
  var heads = Array.prototype.slice.call(table.tHead.rows[0].cells);
  var original = Array.prototype.slice.call(body.rows);

  // A cell's number, or its text; null sorts last either way.
  function key(row, column) {
    var cell = row.cells[column];
    if (cell.hasAttribute("data-v")) return parseFloat(cell.getAttribute("data-v"));
    return cell.classList.contains("none") ? null : cell.textContent;
  }

  function compare(a, b) {
    return typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  }

  function sort(column, sign) {
    var keyed = original.map(function (row, i) {
      return { row: row, key: key(row, column), place: i };
    });
    keyed.sort(function (a, b) {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null) || a.place - b.place;
      return sign * compare(a.key, b.key) || a.place - b.place;
    });
    keyed.forEach(function (item) {
      body.appendChild(item.row);
    });
  }

  heads.forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.textContent = "";
    head.appendChild(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(function (other) {
        other.setAttribute("aria-sort", "none");
      });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(column, down ? -1 : 1);
    });
  });
})();
