const verdict = number => (document.querySelector(`input[name="${number}"]:checked`) || {}).value || "";
const count = () => { document.getElementById("count").textContent =
  pairs.filter((_, number) => verdict(number)).length + " of " + pairs.length + " judged"; };
document.addEventListener("change", count); count();
const cell = value => '"' + String(value).replaceAll('"', '""') + '"';
document.getElementById("export").onclick = () => {
  const names = Object.keys(pairs[0]);
  const rows = pairs.map((pair, number) => names.map(name => cell(name === "verdict" ? verdict(number) : pair[name])));
  const text = [names, ...rows].map(row => row.join(",")).join("\r\n") + "\r\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = "judged.csv";
  link.click();
};
