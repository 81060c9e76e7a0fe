"""The command line: one module for each verb, and what verbs share.

`lazyimg.cli.command` is the way in. It knows the verbs' names and one line about each; a verb's
module is imported when that verb runs (or completes a word, or shows its help), and it imports what
is heavy (the event loop, the registry client, rich) in its body. So `lazyimg --help`, completion
and `lazyimg status` answer at once, and `lazyimg serve` does not carry what it never uses.

Rules:
  - results on standard output, progress and messages on standard error;
  - a failure is one line, ``lazyimg: what: problem; remedy``, and the exit code of its class
    (`lazyimg.errors`); a traceback is shown with --debug only;
  - whatever prints a result does so as a table or as JSON (`output`);
  - verbs that need the kernel ask the daemon over its socket and touch nothing themselves;
    `convert`, `login`, `logout` and `inspect` (when there is no daemon) talk to registries.

Shared: `options` (flags that several verbs have), `invocation` (configuration and daemon of this
run), `output` (tables, sizes, JSON), `progress` (long work on a terminal and elsewhere).
"""
