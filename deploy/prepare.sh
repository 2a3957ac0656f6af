#!/bin/sh
# Makes what docker-compose.yml needs: .env (from deploy/env.example), and the secrets as files in deploy/secrets.
#
#   sh deploy/prepare.sh          then fill in .env
#   sh deploy/prepare.sh demo     with what --profile demo needs filled in
#
# What is there already stays, so that it may be run again at any time; passwords and tokens that stand in the
# .env of an earlier version move from there.
set -eu
cd "$(dirname "$0")/.."
umask 077

in_env() { # NAME: what .env says of it
    sed -n "s/^$1=//p" .env | tail -n 1 | sed "s/^[\"']//; s/[\"']\$//"
}
set_in_env() { # NAME VALUE
    awk -v name="$1" -v value="$2" 'index($0, name "=") == 1 { $0 = name "=" value } { print }' .env > .env.new
    mv .env.new .env
}
random() { # BYTES, in hexadecimal
    od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'
}
entry() { # NAME ROLE SECRET: of HILUM_API_TOKENS, which holds the hash alone
    echo "$1:$2:$(printf %s "$3" | sha256sum | cut -d ' ' -f 1)"
}
keep() { # NAME VALUE: a secret that is not there yet
    file=deploy/secrets/$1
    if [ -s "$file" ]; then return; fi
    printf '%s\n' "$2" > "$file"
    # A container's user reads it as one of the others; on this machine the folder keeps them out.
    chmod 0644 "$file"
}

if [ ! -e .env ]; then cp deploy/env.example .env; fi
mkdir -p deploy/secrets
chmod 0700 deploy/secrets
if [ "${1:-}" = demo ]; then
    set_in_env HILUM_CALLING_AE_TITLES ORTHANC,ROUTER
    set_in_env HILUM_DESTINATIONS PACS=dicom://ORTHANC@orthanc:4242
    # Whoever tries it has no child's film at hand; the limit stands beside the number.
    set_in_env HILUM_POPULATION flag
    set_in_env HILUM_STUDY_QUIET_SECONDS 2
fi

for server in postgres redis; do
    name=$(echo "$server" | tr '[:lower:]' '[:upper:]')_PASSWORD
    password=$(in_env "$name")
    keep "${server}_password" "${password:-$(random 24)}"
    set_in_env "$name" ""
done
password=$(cat deploy/secrets/postgres_password)
keep hilum_database_url "postgresql+psycopg://hilum:$password@postgres:5432/hilum"
password=$(cat deploy/secrets/redis_password)
keep hilum_broker_url "redis://hilum:$password@redis:6379/0"

tokens=$(in_env HILUM_API_TOKENS)
if [ -z "$tokens" ] && [ ! -s deploy/secrets/hilum_api_tokens ]; then
    secret=$(random 32)
    tokens=$(entry first administrator "$secret")
    echo "To sign in at http://127.0.0.1:8080/ (shown once, kept nowhere): $secret"
fi
keep hilum_api_tokens "$tokens"
if [ "$(cat deploy/secrets/hilum_api_tokens)" = "$tokens" ]; then set_in_env HILUM_API_TOKENS ""; fi
if [ ! -s deploy/secrets/metrics_token ]; then
    secret=$(random 32)
    tokens=$(cat deploy/secrets/hilum_api_tokens)
    echo "$tokens,$(entry prometheus viewer "$secret")" > deploy/secrets/hilum_api_tokens
    keep metrics_token "$secret"
fi
keep grafana_password "$(random 12)"
echo "deploy/secrets is complete; settings are in .env"
