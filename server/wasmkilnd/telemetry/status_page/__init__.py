"""The status page: what a person looks at first, at / of the admin port.

=============  ========================================================================
``pages``      what is served at which path: the page, its live part, its assets
``document``   the page as a whole: head, headline, sections
``sources``    what the daemon hands in: functions that return what there is now
``sampler``    reads the metrics every 5 s into ``history``: an hour, in memory
``history``    samples, and the columns of a chart that they make up
``overview``   figures, charts, what needs attention
``machinery``  tiers, engines, isolation
``lists``      recent compiles, modules in quarantine
``origins``    the origins of artifacts: order, names, colours
``elements``   tables, bars, figures, marks
``charts``     SVG; colours are classes of the style sheet
``markup``     HTML whose every text and attribute is escaped
``words``      bytes, durations and counts as people read them
``assets/``    style sheet, script and icon: nothing comes from elsewhere
=============  ========================================================================

The page is made by the daemon, so that it works without its script; with it, sections are
replaced every 2 s while somebody looks. Nothing on it can change the daemon. Digests and engine
names of calls that failed are what callers sent: they are cut, and escaped like all else.

Promises: while nobody looks, the daemon reads a dozen counters every 5 s; a page is made once for
all who ask at that moment, and the daemon then does other work for four times as long
(``admin.SharedPage``); a part that cannot be made says so, and the others are shown; memory is
bounded by ``history.KEPT`` samples. Who may read it is a row of ``access.guard.PATHS``, as for
/metrics. It shows reasons and digests, and no message of an engine, which may quote a module.
"""
