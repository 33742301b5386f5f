-- Version 2. What waits of one account, for requests that wait until the chat store knows it.

CREATE INDEX outbox_account ON outbox (account);
