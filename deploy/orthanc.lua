-- The PACS as router: what anybody else stores here goes on to Hilum; what Hilum stores stays.
function OnStoredInstance(instanceId, tags, metadata, origin)
   if metadata['RemoteAET'] ~= 'HILUM' then
      SendToModality(instanceId, 'hilum')
   end
end
