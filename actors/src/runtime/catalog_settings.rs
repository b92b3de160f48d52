//! The settings of an Iceberg REST catalog that is to keep the lake's tables.

use super::SettingsError;

/// Which catalog, and how it is reached. Its `Debug` hides what is secret.
#[derive(Clone, PartialEq, Eq)]
pub struct CatalogSettings {
    /// `DOLAKE_CATALOG_URI`: what the protocol's paths follow (`/v1/config` and so on), without a `/` at the end.
    pub uri: String,
    /// `DOLAKE_CATALOG_WAREHOUSE`: which of the catalog's warehouses; the catalog chooses where there is none.
    pub warehouse: Option<String>,
    /// `DOLAKE_CATALOG_NAMESPACE`: the namespace of the tables, the outermost level first.
    pub namespace: Vec<String>,
    /// How requests say whose they are.
    pub access: CatalogAccess,
}

/// How requests say whose they are.
#[derive(Clone, PartialEq, Eq)]
pub enum CatalogAccess {
    /// They do not.
    Anyone,
    /// `DOLAKE_CATALOG_TOKEN`: by this bearer token.
    Token(String),
    /// By a token that the client's credentials are exchanged for (OAuth 2).
    Credentials {
        /// `DOLAKE_CATALOG_CREDENTIAL`, before its first colon.
        client_id: String,
        /// `DOLAKE_CATALOG_CREDENTIAL`, after it.
        client_secret: String,
        /// `DOLAKE_CATALOG_OAUTH2_URI`: who exchanges them; `/v1/oauth/tokens` of the catalog where there is none.
        token_uri: Option<String>,
        /// `DOLAKE_CATALOG_SCOPE`: what the token is for.
        scope: String,
    },
}

impl std::fmt::Debug for CatalogSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { uri, warehouse, namespace, .. } = self;
        write!(formatter, "CatalogSettings({uri}, {warehouse:?}, {namespace:?})")
    }
}

impl CatalogSettings {
    /// Reads the settings `DOLAKE_CATALOG_...`; `None` where no URI is named.
    ///
    /// # Errors
    /// The first setting that is malformed, or lacks one it goes with. The value of a secret is not repeated.
    pub fn from_variables(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>, SettingsError> {
        const OTHERS: &[&str] = &[
            "DOLAKE_CATALOG_WAREHOUSE",
            "DOLAKE_CATALOG_NAMESPACE",
            "DOLAKE_CATALOG_TOKEN",
            "DOLAKE_CATALOG_CREDENTIAL",
            "DOLAKE_CATALOG_OAUTH2_URI",
            "DOLAKE_CATALOG_SCOPE",
        ];
        let text = |name: &str| variable(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let bad = |name: &'static str, value: &str, reason: &str| SettingsError {
            name,
            value: value.to_owned(),
            reason: reason.to_owned(),
        };
        let Some(uri) = text("DOLAKE_CATALOG_URI") else {
            // A lake that silently goes without its catalog would be found out late.
            return match OTHERS.iter().find(|name| text(name).is_some()) {
                Some(name) => Err(bad("DOLAKE_CATALOG_URI", "", &format!("{name} is set, and no URI"))),
                None => Ok(None),
            };
        };
        let is_url = |text: &str| text.starts_with("http://") || text.starts_with("https://");
        if !is_url(&uri) || uri.contains(['?', '#']) {
            return Err(bad("DOLAKE_CATALOG_URI", &uri, "expected a URL as https://HOST/PATH"));
        }
        let namespace = text("DOLAKE_CATALOG_NAMESPACE").unwrap_or_else(|| "default".to_owned());
        let levels: Vec<String> = namespace.split('.').map(str::to_owned).collect();
        if levels.iter().any(String::is_empty) {
            return Err(bad("DOLAKE_CATALOG_NAMESPACE", &namespace, "expected names separated by single points"));
        }
        let access = match (text("DOLAKE_CATALOG_TOKEN"), text("DOLAKE_CATALOG_CREDENTIAL")) {
            (None, None) => CatalogAccess::Anyone,
            (Some(token), None) => CatalogAccess::Token(token),
            (None, Some(credential)) => {
                let (client_id, client_secret) = credential
                    .split_once(':')
                    .ok_or_else(|| bad("DOLAKE_CATALOG_CREDENTIAL", "...", "expected ID:SECRET"))?;
                let token_uri = text("DOLAKE_CATALOG_OAUTH2_URI");
                if let Some(uri) = token_uri.as_ref().filter(|uri| !is_url(uri)) {
                    return Err(bad("DOLAKE_CATALOG_OAUTH2_URI", uri, "expected a URL as https://HOST/PATH"));
                }
                let (client_id, client_secret) = (client_id.to_owned(), client_secret.to_owned());
                let scope = text("DOLAKE_CATALOG_SCOPE").unwrap_or_else(|| "catalog".to_owned());
                CatalogAccess::Credentials { client_id, client_secret, token_uri, scope }
            }
            (Some(_), Some(_)) => {
                return Err(bad("DOLAKE_CATALOG_TOKEN", "...", "DOLAKE_CATALOG_CREDENTIAL is set as well"));
            }
        };
        let uri = uri.trim_end_matches('/').to_owned();
        Ok(Some(Self { uri, warehouse: text("DOLAKE_CATALOG_WAREHOUSE"), namespace: levels, access }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<CatalogSettings>, String> {
        let value = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        CatalogSettings::from_variables(&value).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_read_and_refused() {
        const URI: (&str, &str) = ("DOLAKE_CATALOG_URI", "https://catalog.example/iceberg/");
        assert_eq!(read(&[]), Ok(None));
        let settings = read(&[URI]).unwrap().unwrap();
        assert_eq!(
            (settings.uri.as_str(), &settings.namespace[..]),
            ("https://catalog.example/iceberg", &["default".to_owned()][..])
        );
        let settings = read(&[URI, ("DOLAKE_CATALOG_CREDENTIAL", "me:hid:den")]).unwrap().unwrap();
        assert!(!format!("{settings:?}").contains("hid:den"));
        assert!(
            matches!(settings.access, CatalogAccess::Credentials { client_secret, .. } if client_secret == "hid:den")
        );
        for (pairs, named) in [
            (&[("DOLAKE_CATALOG_TOKEN", "hidden")][..], "DOLAKE_CATALOG_URI"),
            (&[("DOLAKE_CATALOG_URI", "catalog.example")], "DOLAKE_CATALOG_URI"),
            (&[URI, ("DOLAKE_CATALOG_NAMESPACE", "a..b")], "DOLAKE_CATALOG_NAMESPACE"),
            (&[URI, ("DOLAKE_CATALOG_CREDENTIAL", "hidden")], "DOLAKE_CATALOG_CREDENTIAL"),
            (&[URI, ("DOLAKE_CATALOG_TOKEN", "hidden"), ("DOLAKE_CATALOG_CREDENTIAL", "a:b")], "DOLAKE_CATALOG_TOKEN"),
        ] {
            let refusal = read(pairs).unwrap_err();
            assert!(refusal.starts_with(named) && !refusal.contains("hidden"), "{refusal}");
        }
    }
}
