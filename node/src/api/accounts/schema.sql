-- Version 1. Texts and whole numbers alone, so that one schema serves SQLite and PostgreSQL. Times
-- are Unix milliseconds; hashes, installations and ids are hexadecimal; a flag is 0 or 1.

CREATE TABLE accounts (
    id TEXT NOT NULL PRIMARY KEY,
    handle TEXT NOT NULL UNIQUE,
    -- What the handle looks like (UTS 39): two that look alike cannot both be taken.
    skeleton TEXT NOT NULL UNIQUE,
    password TEXT NOT NULL,
    name TEXT NOT NULL,
    avatar TEXT NOT NULL,
    status TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    -- 1 once its owner has asked for its deletion.
    deleting BIGINT NOT NULL,
    -- Counts the changes of its relations and devices; numbers the rows of `outbox`.
    version BIGINT NOT NULL
);

-- Hashes of what deleted handles looked like: nobody steps into the shoes of somebody else.
CREATE TABLE retired_handles (
    hash TEXT NOT NULL PRIMARY KEY
);

CREATE TABLE devices (
    account TEXT NOT NULL REFERENCES accounts (id),
    installation TEXT NOT NULL,
    -- What the user's shard has numbered it; 0 while nobody has told.
    number BIGINT NOT NULL,
    label TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    seen_ms BIGINT NOT NULL,
    -- A removed one stays, so that its installation does not come back.
    removed BIGINT NOT NULL,
    PRIMARY KEY (account, installation)
);

CREATE TABLE sessions (
    family TEXT NOT NULL PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts (id),
    installation TEXT NOT NULL,
    refresh_hash TEXT NOT NULL,
    -- The token before it, and the key of the request that exchanged that one; empty for none.
    previous_hash TEXT NOT NULL,
    retry_hash TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    used_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    UNIQUE (account, installation)
);

CREATE INDEX sessions_expires ON sessions (expires_ms);

-- Families whose access tokens may still be about.
CREATE TABLE revocations (
    family TEXT NOT NULL PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    until_ms BIGINT NOT NULL
);

CREATE INDEX revocations_at ON revocations (at_ms);

-- What one user wants of another. Friends are two who ask for each other.
CREATE TABLE relations (
    owner TEXT NOT NULL REFERENCES accounts (id),
    peer TEXT NOT NULL REFERENCES accounts (id),
    asks BIGINT NOT NULL,
    blocks BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (owner, peer)
);

CREATE INDEX relations_peer ON relations (peer, owner);

-- What the chat store must be told, one row for each thing it knows, replaced by what is newer.
CREATE TABLE outbox (
    topic TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    kind TEXT NOT NULL,
    account TEXT NOT NULL,
    other TEXT NOT NULL,
    friends BIGINT NOT NULL,
    blocks BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    taken_until_ms BIGINT NOT NULL
);

CREATE INDEX outbox_changed ON outbox (changed_ms);

CREATE TABLE tasks (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    account TEXT NOT NULL,
    vests_ms BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    last_error TEXT NOT NULL,
    -- 1 once it has failed too often: somebody must look.
    dead BIGINT NOT NULL
);

CREATE INDEX tasks_vests ON tasks (dead, vests_ms);
