package postgres

// tables are those of the first format. Items of an id lie in one partition, in byte order of their keys.
const tables = `
CREATE TABLE {s}.format (version int NOT NULL);
CREATE TABLE {s}.item (
	space bytea NOT NULL, id bytea NOT NULL, key bytea NOT NULL,
	version bytea NOT NULL,
	expire bigint NOT NULL,   -- milliseconds since 1970; 0: never
	modified bigint NOT NULL, -- microseconds since 1970
	size bigint NOT NULL,     -- of a large value
	meta bytea NOT NULL,      -- content type and metadata
	large bytea,              -- the name of a value that is kept in parts
	value bytea NOT NULL,
	PRIMARY KEY (space, id, key)
) PARTITION BY HASH (space, id);
ALTER TABLE {s}.item ALTER COLUMN value SET STORAGE EXTERNAL;
{partitions}
CREATE INDEX item_expire ON {s}.item (expire) WHERE expire > 0;
CREATE TABLE {s}.part (
	large bytea NOT NULL, number int NOT NULL,
	sum bigint NOT NULL, -- xxHash64 of data
	data bytea NOT NULL,
	PRIMARY KEY (large, number)
);
ALTER TABLE {s}.part ALTER COLUMN data SET STORAGE EXTERNAL;
-- Large values that are no item's: still being written, or with touched 0 to be removed.
CREATE TABLE {s}.unfinished (large bytea PRIMARY KEY, touched bigint NOT NULL);
CREATE INDEX unfinished_touched ON {s}.unfinished (touched);
CREATE TABLE {s}.token (
	space bytea NOT NULL, id bytea NOT NULL, nonce bytea NOT NULL,
	request bytea NOT NULL,
	until bigint NOT NULL, -- milliseconds since 1970
	sum bigint,
	versions bytea[] NOT NULL, expires bigint[] NOT NULL, existed boolean[] NOT NULL,
	old_version bytea, old_expire bigint, old_modified bigint, old_size bigint, old_meta bytea, old_large bytea, old_value bytea,
	PRIMARY KEY (space, id, nonce)
);
CREATE INDEX token_until ON {s}.token (until);
`

// functions do writes in one round trip. All writers of an id hold one advisory lock until their transaction ends, so that
// what a function has read stays true; each statement sees what was committed before it.
//
// The status that they return is one of the constants of this package.
const functions = `
-- A transaction whose snapshot is older than the lock would judge conditions by what is no longer true.
CREATE FUNCTION {s}.hold(lock bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' THEN
		RAISE invalid_transaction_state USING MESSAGE = 'transactions must be read committed';
	END IF;
	PERFORM pg_advisory_xact_lock(lock);
END $$;

CREATE FUNCTION {s}.apply(
	lock bigint, in_space bytea, in_id bytea, in_key bytea, op int, condition int, expected bytea, now bigint, in_expire bigint,
	keep boolean, in_version bytea, in_modified bigint, in_meta bytea, in_value bytea, in_large bytea, in_size bigint, previous boolean,
	OUT status int, OUT current bytea, OUT at bigint, OUT existed boolean, OUT old_version bytea, OUT old_expire bigint,
	OUT old_modified bigint, OUT old_size bigint, OUT old_meta bytea, OUT old_large bytea, OUT old_value bytea
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE there boolean;
BEGIN
	PERFORM {s}.hold(lock);
	SELECT i.version, i.expire, i.modified, CASE WHEN i.large IS NULL THEN octet_length(i.value) ELSE i.size END, i.meta, i.large,
		CASE WHEN previous THEN i.value END
		INTO old_version, old_expire, old_modified, old_size, old_meta, old_large, old_value
		FROM {s}.item i WHERE i.space = in_space AND i.id = in_id AND i.key = in_key;
	there := FOUND;
	existed := there AND (old_expire = 0 OR old_expire > now);
	status := 0;
	at := 0;
	IF existed THEN
		current := old_version;
	END IF;
	IF (condition = 1 AND existed) OR ((condition = 2 OR (op = 2 AND condition <> 3)) AND NOT existed)
		OR (condition = 3 AND (NOT existed OR old_version <> expected)) THEN
		status := 1;
		RETURN;
	END IF;
	IF in_large IS NOT NULL THEN
		DELETE FROM {s}.unfinished u WHERE u.large = in_large AND u.touched > 0;
		IF NOT FOUND THEN
			status := 2;
			RETURN;
		END IF;
	END IF;
	IF op <> 1 THEN
		at := CASE WHEN keep AND existed THEN old_expire ELSE in_expire END;
	END IF;
	IF op = 0 THEN
		INSERT INTO {s}.item AS i (space, id, key, version, expire, modified, size, meta, large, value)
			VALUES (in_space, in_id, in_key, in_version, at, in_modified, in_size, in_meta, in_large, in_value)
			ON CONFLICT (space, id, key) DO UPDATE SET version = EXCLUDED.version, expire = EXCLUDED.expire,
				modified = greatest(i.modified, EXCLUDED.modified), size = EXCLUDED.size, meta = EXCLUDED.meta, large = EXCLUDED.large, value = EXCLUDED.value;
	ELSIF op = 1 THEN
		IF there THEN
			DELETE FROM {s}.item i WHERE i.space = in_space AND i.id = in_id AND i.key = in_key;
		END IF;
	ELSE
		UPDATE {s}.item i SET version = in_version, expire = at WHERE i.space = in_space AND i.id = in_id AND i.key = in_key;
		IF NOT FOUND THEN -- swept by a proxy whose clock is ahead
			status := 1;
			current := NULL;
		END IF;
		RETURN;
	END IF;
	IF there AND old_large IS NOT NULL THEN
		INSERT INTO {s}.unfinished VALUES (old_large, 0) ON CONFLICT DO NOTHING;
	END IF;
END $$;

CREATE FUNCTION {s}.write_once(
	lock bigint, in_space bytea, in_id bytea, in_key bytea, op int, condition int, expected bytea, now bigint, in_expire bigint,
	keep boolean, in_version bytea, in_modified bigint, in_meta bytea, in_value bytea, in_large bytea, in_size bigint, previous boolean,
	in_nonce bytea, in_request bytea, in_until bigint,
	OUT status int, OUT current bytea, OUT at bigint, OUT existed boolean, OUT old_version bytea, OUT old_expire bigint,
	OUT old_modified bigint, OUT old_size bigint, OUT old_meta bytea, OUT old_large bytea, OUT old_value bytea
) LANGUAGE plpgsql AS $$
DECLARE t {s}.token;
BEGIN
	PERFORM {s}.hold(lock);
	SELECT * INTO t FROM {s}.token k WHERE k.space = in_space AND k.id = in_id AND k.nonce = in_nonce AND k.until > now;
	IF FOUND THEN
		status := CASE WHEN t.request = in_request THEN 3 ELSE 4 END;
		current := t.versions[1];
		at := t.expires[1];
		existed := t.existed[1];
		old_version := t.old_version;
		old_expire := t.old_expire;
		old_modified := t.old_modified;
		old_size := t.old_size;
		old_meta := t.old_meta;
		old_large := t.old_large;
		old_value := t.old_value;
		RETURN;
	END IF;
	SELECT a.* INTO status, current, at, existed, old_version, old_expire, old_modified, old_size, old_meta, old_large, old_value
		FROM {s}.apply(lock, in_space, in_id, in_key, op, condition, expected, now, in_expire, keep, in_version, in_modified,
			in_meta, in_value, in_large, in_size, previous) a;
	IF status = 0 THEN
		DELETE FROM {s}.token k WHERE k.space = in_space AND k.id = in_id AND k.nonce = in_nonce;
		INSERT INTO {s}.token VALUES (in_space, in_id, in_nonce, in_request, in_until, NULL,
			ARRAY[CASE WHEN op <> 1 THEN in_version END], ARRAY[at], ARRAY[existed],
			old_version, old_expire, old_modified, old_size, old_meta, old_large, old_value);
	END IF;
END $$;

CREATE FUNCTION {s}.increment(
	lock bigint, in_space bytea, in_id bytea, in_key bytea, delta bigint, initial bigint, now bigint, in_expire bigint, keep boolean,
	in_version bytea, in_modified bigint, in_nonce bytea, in_request bytea, in_until bigint,
	OUT status int, OUT current bytea, OUT at bigint, OUT existed boolean, OUT sum bigint
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
	t {s}.token;
	number numeric := initial;
	old_value bytea;
	old_meta bytea;
	a record;
BEGIN
	PERFORM {s}.hold(lock);
	status := 0;
	IF in_nonce IS NOT NULL THEN
		SELECT * INTO t FROM {s}.token k WHERE k.space = in_space AND k.id = in_id AND k.nonce = in_nonce AND k.until > now;
		IF FOUND THEN
			status := CASE WHEN t.request = in_request THEN 3 ELSE 4 END;
			current := t.versions[1];
			at := t.expires[1];
			existed := t.existed[1];
			sum := t.sum;
			RETURN;
		END IF;
	END IF;
	SELECT i.value, i.meta INTO old_value, old_meta FROM {s}.item i
		WHERE i.space = in_space AND i.id = in_id AND i.key = in_key AND (i.expire = 0 OR i.expire > now);
	IF FOUND THEN
		IF octet_length(old_value) > 20 OR encode(old_value, 'escape') !~ '^(0|-?[1-9][0-9]*)$' THEN
			status := 5;
			RETURN;
		END IF;
		number := encode(old_value, 'escape')::numeric;
		IF number NOT BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
			status := 5;
			RETURN;
		END IF;
	END IF;
	number := number + delta;
	IF number NOT BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
		status := 6;
		RETURN;
	END IF;
	sum := number;
	SELECT * INTO a FROM {s}.apply(lock, in_space, in_id, in_key, 0, 0, '', now, in_expire, keep, in_version, in_modified,
		coalesce(old_meta, ''), convert_to(sum::text, 'UTF8'), NULL, 0, false);
	current := in_version;
	at := a.at;
	existed := a.existed;
	IF in_nonce IS NOT NULL THEN
		DELETE FROM {s}.token k WHERE k.space = in_space AND k.id = in_id AND k.nonce = in_nonce;
		INSERT INTO {s}.token VALUES (in_space, in_id, in_nonce, in_request, in_until, sum, ARRAY[in_version], ARRAY[at], ARRAY[existed]);
	END IF;
END $$;

CREATE FUNCTION {s}.transact(
	lock bigint, in_space bytea, in_id bytea, now bigint, in_modified bigint, check_keys bytea[], check_conditions int[], check_versions bytea[],
	ops int[], in_keys bytea[], conditions int[], expected bytea[], in_expires bigint[], keeps boolean[], in_versions bytea[],
	metas bytea[], vals bytea[], in_nonce bytea, in_request bytea, in_until bigint,
	OUT status int, OUT place int, OUT current bytea, OUT versions bytea[], OUT expires bigint[], OUT existed boolean[]
) LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan AS $$
DECLARE
	t {s}.token;
	a record;
BEGIN
	PERFORM {s}.hold(lock);
	status := 0;
	place := 0;
	versions := '{}';
	expires := '{}';
	existed := '{}';
	IF in_nonce IS NOT NULL THEN
		SELECT * INTO t FROM {s}.token k WHERE k.space = in_space AND k.id = in_id AND k.nonce = in_nonce AND k.until > now;
		IF FOUND THEN
			status := CASE WHEN t.request = in_request THEN 3 ELSE 4 END;
			versions := t.versions;
			expires := t.expires;
			existed := t.existed;
			RETURN;
		END IF;
	END IF;
	FOR n IN 1 .. cardinality(check_keys) LOOP
		current := NULL;
		SELECT i.version INTO current FROM {s}.item i
			WHERE i.space = in_space AND i.id = in_id AND i.key = check_keys[n] AND (i.expire = 0 OR i.expire > now);
		IF (check_conditions[n] = 1 AND current IS NOT NULL) OR (check_conditions[n] = 2 AND current IS NULL)
			OR (check_conditions[n] = 3 AND current IS DISTINCT FROM check_versions[n]) THEN
			status := 1;
			place := n - 1;
			RETURN;
		END IF;
	END LOOP;
	BEGIN
		FOR n IN 1 .. cardinality(ops) LOOP
			SELECT * INTO a FROM {s}.apply(lock, in_space, in_id, in_keys[n], ops[n], conditions[n], expected[n], now, in_expires[n],
				keeps[n], in_versions[n], in_modified, metas[n], vals[n], NULL, 0, false);
			IF a.status <> 0 THEN
				status := 1;
				place := cardinality(check_keys) + n - 1;
				RAISE EXCEPTION 'refused' USING ERRCODE = 'PR001';
			END IF;
			versions := array_append(versions, CASE WHEN ops[n] <> 1 THEN in_versions[n] END);
			expires := array_append(expires, a.at);
			existed := array_append(existed, a.existed);
		END LOOP;
	EXCEPTION WHEN SQLSTATE 'PR001' THEN
		current := a.current;
		RETURN;
	END;
	IF in_nonce IS NOT NULL THEN
		DELETE FROM {s}.token k WHERE k.space = in_space AND k.id = in_id AND k.nonce = in_nonce;
		INSERT INTO {s}.token VALUES (in_space, in_id, in_nonce, in_request, in_until, NULL, versions, expires, existed);
	END IF;
END $$;
`

// The statuses that the functions return.
const (
	done       = 0
	refused    = 1
	late       = 2 // the parts of a large value were given up
	duplicate  = 3
	reused     = 4
	notCounter = 5
	overflow   = 6
)
