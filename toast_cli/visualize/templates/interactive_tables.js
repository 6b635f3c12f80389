// Sorting by column and details of cells, for every table of the class "sortable". Without scripts, tables stay as they
// are, and details are titles.
(() => {
  const read = (cell) => {
    const text = (cell?.dataset.value ?? cell?.innerText ?? '').trim().split('\n')[0];
    const number = parseFloat(text.replaceAll(',', '').replace('−', '-'));
    return { text, number: /^[-+−]?[\d.]/.test(text) ? number : NaN };
  };
  const compare = (one, other, sign) => {
    const numeric = [one, other].map((each) => !Number.isNaN(each.number));
    if (numeric[0] && numeric[1]) return sign * (one.number - other.number);
    const empty = [one, other].map((each) => !each.text || each.text === '–');
    if (empty[0] !== empty[1]) return empty[0] ? 1 : -1; // a missing number comes last in both directions
    if (numeric[0] !== numeric[1]) return numeric[0] ? -1 : 1;
    return sign * one.text.localeCompare(other.text, undefined, { numeric: true });
  };
  const sort = (table, column, sign) => {
    const body = table.tBodies[0];
    const blocks = [[]]; // one for each group of rows; a row of the class "paper" belongs to the one before it
    for (const row of body.rows) {
      if (row.matches('.group')) blocks.push([[row]], []);
      else if (row.matches('.paper') && blocks.at(-1).length) blocks.at(-1).at(-1).push(row);
      else blocks.at(-1).push([row]);
    }
    for (const block of blocks) {
      block.sort((one, other) => compare(read(one[0].cells[column]), read(other[0].cells[column]), sign));
    }
    body.append(...blocks.flat(2));
  };
  for (const table of document.querySelectorAll('table.sortable')) {
    const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener('click', () => {
        const before = heading.getAttribute('aria-sort');
        const sign = before ? (before === 'ascending' ? -1 : 1) : column ? -1 : 1; // numbers: the largest first
        headings.forEach((each) => each.removeAttribute('aria-sort'));
        heading.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
        sort(table, column, sign);
      });
    });
  }
  const tip = document.body.appendChild(document.createElement('div'));
  Object.assign(tip, { id: 'cell-details', hidden: true, role: 'tooltip' });
  const hide = () => { tip.hidden = true; };
  for (const cell of document.querySelectorAll('table.sortable td[title]')) {
    const details = cell.title;
    cell.removeAttribute('title');
    cell.tabIndex = 0;
    cell.setAttribute('aria-describedby', 'cell-details');
    const show = () => {
      tip.textContent = details;
      tip.hidden = false;
      const place = cell.getBoundingClientRect();
      const left = Math.min(place.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
      tip.style.left = `${Math.max(left, 8) + window.scrollX}px`;
      tip.style.top = `${place.bottom + window.scrollY + 4}px`;
    };
    for (const event of ['mouseenter', 'focus', 'click']) cell.addEventListener(event, show);
    for (const event of ['mouseleave', 'blur']) cell.addEventListener(event, hide);
  }
  document.addEventListener('keydown', (event) => { if (event.key === 'Escape') hide(); });
})();
