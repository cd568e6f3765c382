-- The tables of durable. Moments are seconds since 1970 UTC, spans are seconds, values are JSON text.
-- Other tables in the file belong to the user.
--
-- The checks list what is allowed with OR: for an IN of more than two, SQLite builds a table in memory
-- each time that it checks a row, which takes as long as all the rest of an insert.

-- A run of a workflow. `seq` is the order of creation and never used again.
CREATE TABLE durable_workflow (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    id           TEXT NOT NULL UNIQUE CHECK (id <> ''),
    name         TEXT NOT NULL CHECK (name <> ''),
    status       TEXT NOT NULL CHECK (
                     status = 'DELAYED' OR status = 'ENQUEUED' OR status = 'PENDING'
                     OR status = 'SUCCESS' OR status = 'ERROR' OR status = 'CANCELLED'
                     OR status = 'DEAD'),
    input        TEXT NOT NULL,              -- [args, kwargs], and for a method what it is bound to
    result       TEXT,
    error        TEXT,
    reason       TEXT,                       -- why it was stopped, or why it does not go on
    epoch        INTEGER NOT NULL DEFAULT 1, -- grows when it is taken up; a write of an earlier one is refused
    holder       INTEGER,                    -- the durable_session that runs it
    recoveries   INTEGER NOT NULL DEFAULT 0, -- deaths in a row with no checkpoint in between
    progress     INTEGER NOT NULL DEFAULT 0, -- recorded steps when it was last taken up
    waits_for    TEXT,                       -- the key that it waits for, once it has waited a while
    wake_at      REAL,                       -- until when it sleeps, or waits at the longest
    created_at   REAL NOT NULL,
    started_at   REAL,
    finished_at  REAL,
    timeout      REAL CHECK (timeout >= 0),
    deadline_at  REAL,
    parent_id    TEXT,
    cancelled_by TEXT,                       -- the ancestor whose cancel reached it
    seed         TEXT NOT NULL,              -- of random() and uuid4(): the id, or that of the run it was forked from
    version      TEXT,
    tags         TEXT NOT NULL DEFAULT '[]',
    queue        TEXT,
    priority     INTEGER,                    -- the lower first, and none before any
    dedup        TEXT,                       -- what no other run that waits or runs in the queue has
    partition    TEXT,
    delay_until  REAL,
    debounce     TEXT,                       -- the key of a Debouncer, whose next call may change it
    CHECK ((status = 'SUCCESS' OR status = 'ERROR' OR status = 'CANCELLED' OR status = 'DEAD')
           = (finished_at IS NOT NULL)),
    CHECK ((status = 'SUCCESS') = (result IS NOT NULL)),
    CHECK ((status = 'ERROR') = (error IS NOT NULL)),
    CHECK (status NOT IN ('DELAYED', 'ENQUEUED') OR (queue IS NOT NULL AND holder IS NULL)),
    CHECK (status <> 'DELAYED' OR delay_until IS NOT NULL)
) STRICT;

-- serves workflows.unfinished (recovery)
CREATE INDEX durable_workflow_unfinished ON durable_workflow (seq) WHERE status = 'PENDING';
-- serves workflows.family (cancel and resume with children)
CREATE INDEX durable_workflow_parent ON durable_workflow (parent_id) WHERE parent_id IS NOT NULL;
-- serves queues.waiting, queues.look and queues.next_partition
CREATE INDEX durable_workflow_waiting ON durable_workflow (queue, partition, priority, seq)
    WHERE status = 'ENQUEUED';
-- serves queues.running and queues.look: what is in nobody's hands for a reason (its code is missing) has no slot
CREATE INDEX durable_workflow_slot ON durable_workflow (queue, partition)
    WHERE status = 'PENDING' AND queue IS NOT NULL AND (holder IS NOT NULL OR reason IS NULL);
-- serves queues.make_due and queues.next_due
CREATE INDEX durable_workflow_delayed ON durable_workflow (queue, delay_until)
    WHERE status = 'DELAYED';
-- serves workflows.find_dedup, and refuses a second unfinished run of one dedup in a queue
CREATE UNIQUE INDEX durable_workflow_dedup ON durable_workflow (queue, dedup)
    WHERE dedup IS NOT NULL AND finished_at IS NULL;
-- serves queues._postpone, and refuses a second run to come of one Debouncer's key
CREATE UNIQUE INDEX durable_workflow_debounce ON durable_workflow (debounce, name)
    WHERE debounce IS NOT NULL AND status = 'DELAYED';

-- A checkpoint. `outcome` is null while it is undecided: a wait with a deadline, or a step to be retried.
CREATE TABLE durable_step (
    workflow    INTEGER NOT NULL,
    lane        TEXT NOT NULL,               -- '' for the workflow itself, '4' for what step 4 runs beside it
    number      INTEGER NOT NULL CHECK (number > 0),
    name        TEXT NOT NULL,
    outcome     TEXT CHECK (outcome = 'value' OR outcome = 'error' OR outcome = 'timeout'
                            OR outcome = 'cancelled'),
    value       TEXT,
    attempt     INTEGER NOT NULL DEFAULT 1,
    until_at    REAL,
    started_at  REAL NOT NULL,
    finished_at REAL,
    PRIMARY KEY (workflow, lane, number),
    CHECK ((outcome IN ('value', 'error')) = (outcome IS NOT NULL AND value IS NOT NULL)),
    CHECK ((outcome IS NULL) = (finished_at IS NULL))
) STRICT, WITHOUT ROWID;

-- A checkpoint that shared its commit with several others, or whose value is long. In durable_step, those of
-- one commit are on as many pages as they are of workflows, and a commit writes whole pages; here they stand
-- side by side. There, what is longer than a quarter of a page begins another one; here it need not.
CREATE TABLE durable_step_by_time (
    workflow    INTEGER NOT NULL,
    lane        TEXT NOT NULL,
    number      INTEGER NOT NULL CHECK (number > 0),
    name        TEXT NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome = 'value' OR outcome = 'error'),
    value       TEXT NOT NULL,
    attempt     INTEGER NOT NULL,
    started_at  REAL NOT NULL,
    finished_at REAL NOT NULL,
    PRIMARY KEY (workflow, lane, number)
) STRICT;

-- All checkpoints; each is in one of the two tables.
CREATE VIEW durable_checkpoint AS
    SELECT workflow, lane, number, name, outcome, value, attempt, until_at, started_at, finished_at
      FROM durable_step
     UNION ALL
    SELECT workflow, lane, number, name, outcome, value, attempt, NULL, started_at, finished_at
      FROM durable_step_by_time;

-- A message to a workflow; `taken_by` is the step that received it. No topic (null) is a topic of its own.
CREATE TABLE durable_message (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow        INTEGER NOT NULL,
    topic           TEXT,
    value           TEXT NOT NULL,
    sender          TEXT,                    -- the id of the workflow that sent it
    idempotency_key TEXT,
    sent_at         REAL NOT NULL,
    taken_lane      TEXT,
    taken_by        INTEGER,
    CHECK ((taken_lane IS NULL) = (taken_by IS NULL))
) STRICT;

-- serves messages.take (the first message of a topic) and messages.copy (those of one workflow)
CREATE INDEX durable_message_topic ON durable_message (workflow, topic, taken_by, seq);
-- refuses the second message with one idempotency key
CREATE UNIQUE INDEX durable_message_once ON durable_message (workflow, idempotency_key)
    WHERE idempotency_key IS NOT NULL;

-- Every value that an event ever had, and the step that set it; the last one counts.
CREATE TABLE durable_event (
    workflow INTEGER NOT NULL,
    key      TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    lane     TEXT NOT NULL,
    number   INTEGER NOT NULL,
    value    TEXT NOT NULL,
    set_at   REAL NOT NULL,
    PRIMARY KEY (workflow, key, seq)
) STRICT, WITHOUT ROWID;

-- A value of a stream; a null value closes it. It has no position until the try that wrote it has
-- succeeded: until then, only those who read live see it.
CREATE TABLE durable_stream (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    workflow   INTEGER NOT NULL,
    key        TEXT NOT NULL,
    position   INTEGER CHECK (position >= 0),
    lane       TEXT NOT NULL,
    number     INTEGER NOT NULL,
    epoch      INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    value      TEXT,
    written_at REAL NOT NULL
) STRICT;

-- serves streams.read, and refuses two values at one position
CREATE UNIQUE INDEX durable_stream_position ON durable_stream (workflow, key, position);
-- serves streams.read_live
CREATE INDEX durable_stream_live ON durable_stream (workflow, key, seq);
-- serves streams.publish
CREATE INDEX durable_stream_pending ON durable_stream (workflow, lane, number) WHERE position IS NULL;

-- A queue, and the limits in force; `declared` are those of the code when they last changed there.
CREATE TABLE durable_queue (
    name        TEXT PRIMARY KEY CHECK (name <> ''),
    concurrency INTEGER CHECK (concurrency > 0),
    rate_limit  INTEGER CHECK (rate_limit > 0),
    rate_per    REAL CHECK (rate_per > 0),
    priority    INTEGER NOT NULL DEFAULT 0 CHECK (priority IN (0, 1)),
    partitioned INTEGER NOT NULL DEFAULT 0 CHECK (partitioned IN (0, 1)),
    declared    TEXT NOT NULL DEFAULT '[]',
    CHECK ((rate_limit IS NULL) = (rate_per IS NULL))
) STRICT, WITHOUT ROWID;

-- A start in a queue with a rate, as long as it counts. `number` has no gaps, so that how many there
-- are is told by the first and the last.
CREATE TABLE durable_queue_start (
    queue  TEXT NOT NULL,
    at     REAL NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (queue, at, number)
) STRICT, WITHOUT ROWID;

-- A schedule that a program has declared. Its moments up to `passed_at` are decided: run or skipped.
CREATE TABLE durable_schedule (
    name      TEXT PRIMARY KEY CHECK (name <> ''),
    workflow  TEXT NOT NULL CHECK (workflow <> ''),
    cron      TEXT NOT NULL,
    tz        TEXT NOT NULL,
    missed    TEXT NOT NULL CHECK (missed IN ('skip', 'latest', 'all')),
    timeout   REAL CHECK (timeout >= 0),     -- of the workflow
    paused    INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    passed_at REAL NOT NULL,
    last_at   REAL,                          -- the last moment that it began a run for
    session   INTEGER NOT NULL               -- the last durable_session that declared it
) STRICT, WITHOUT ROWID;

-- An engine that opened the file; `closed_at` is null while it runs and for good if it died.
CREATE TABLE durable_session (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    pid       INTEGER NOT NULL,
    version   TEXT,
    opened_at REAL NOT NULL,
    closed_at REAL
) STRICT;

-- A key that another process touched, for the engine's watcher.
CREATE TABLE durable_signal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE
) STRICT;
