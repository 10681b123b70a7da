// Search: how-to pages before research questions, these before lessons and the reference.
var Scorer = {
  score: ([page, title, anchor, description, score]) =>
    score + (/^(howto\/|index|architecture|glossary|limits)/.test(page) ? 20 : page.startsWith("nbs/rq") ? 5 : 0),
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
