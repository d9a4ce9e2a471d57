-- Take back what triggers have set for the session. RESET ALL cannot be used: it would also take back settings such as app.tenant,
-- which a login trigger or a pooler has made, and which no catalog shows. A reset_val of null is the default. What only a
-- superuser may set cannot be taken back: this then fails.
SELECT pg_catalog.set_config(name, reset_val, false) FROM pg_catalog.pg_settings
WHERE source OPERATOR(pg_catalog.=) 'session'
    AND context OPERATOR(pg_catalog.=) ANY (ARRAY['user', 'superuser']::pg_catalog.text[])
