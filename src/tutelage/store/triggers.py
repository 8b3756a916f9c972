"""The triggers that make tables append-only, for SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence


def guards(dialect: str, names: Sequence[str], texts: bool = False) -> list[str]:
    """The trigger statements that make these tables append-only and (`texts`) let a text only be erased."""
    lost = "NEW.body IS NOT NULL OR NEW.redacted IS NOT NULL OR NEW.erased_at IS NULL OR NEW.id <> OLD.id"
    made: list[str] = []
    if dialect == "postgresql":
        made.append(
            "CREATE OR REPLACE FUNCTION tutelage_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        )
        for name in names:
            made.append(
                f'CREATE TRIGGER {name}_append_only BEFORE UPDATE OR DELETE ON "{name}" '
                "FOR EACH ROW EXECUTE FUNCTION tutelage_refuse()"
            )
            made.append(_keep_all(name))
        if not texts:
            return made
        made.append(
            "CREATE TRIGGER text_erase_only BEFORE UPDATE ON text FOR EACH ROW "
            f"WHEN ({lost}) EXECUTE FUNCTION tutelage_refuse()"
        )
        made.append("CREATE TRIGGER text_keep BEFORE DELETE ON text FOR EACH ROW EXECUTE FUNCTION tutelage_refuse()")
        made.append(_keep_all("text"))
        return made
    for name in names:
        for act in ("UPDATE", "DELETE"):
            made.append(
                f'CREATE TRIGGER {name}_no_{act.lower()} BEFORE {act} ON "{name}" '
                f"BEGIN SELECT RAISE(ABORT, '{name} is append-only'); END"
            )
    if not texts:
        return made
    made.append(
        f"CREATE TRIGGER text_erase_only BEFORE UPDATE ON text WHEN {lost} "
        "BEGIN SELECT RAISE(ABORT, 'a text can only be erased'); END"
    )
    made.append("CREATE TRIGGER text_keep BEFORE DELETE ON text BEGIN SELECT RAISE(ABORT, 'text is append-only'); END")
    return made


def lifted(dialect: str, names: Sequence[str]) -> list[str]:
    """The statements that take the triggers of tables away, for a migration that moves what their rows hold; it puts
    them back with `guards`."""
    if dialect == "postgresql":
        return [f'DROP TRIGGER {name}_{end} ON "{name}"' for name in names for end in ("append_only", "no_truncate")]
    return [f"DROP TRIGGER {name}_no_{act}" for name in names for act in ("update", "delete")]


def _keep_all(name: str) -> str:
    """TRUNCATE, which SQLite has not, passes by the triggers of rows."""
    return (
        f'CREATE TRIGGER {name}_no_truncate BEFORE TRUNCATE ON "{name}" '
        "FOR EACH STATEMENT EXECUTE FUNCTION tutelage_refuse()"
    )
